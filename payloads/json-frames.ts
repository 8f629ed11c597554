/**
 * Frames of JSON on a byte stream: 4 bytes big-endian length, then UTF-8 JSON. Bounded, tolerant
 * of any split of the stream; what the frames mean is left to their users.
 */
import { limits } from '../contracts/limits.ts';

const headerBytes = 4;

/** A peer broke the framing; the connection can't be used any further. */
export class FrameError extends Error {
  override readonly name = 'FrameError';
}

/** One message as a frame. Throws FrameError above limits.controlFrameBytesMax. */
export function encodeFrame(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message), 'utf8');
  if (body.length > limits.controlFrameBytesMax) {
    throw new FrameError(`frame of ${body.length} bytes, limit ${limits.controlFrameBytesMax}`);
  }
  const frame = Buffer.allocUnsafe(headerBytes + body.length);
  frame.writeUInt32BE(body.length, 0);
  body.copy(frame, headerBytes);
  return frame;
}

/** Cuts a byte stream into messages; feed it what arrives. */
export class FrameDecoder {
  #rest: Buffer = Buffer.alloc(0);

  /** Messages that `chunk` completes. Throws FrameError on an oversized frame or broken JSON. */
  push(chunk: Buffer): unknown[] {
    let rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const messages: unknown[] = [];
    while (rest.length >= headerBytes) {
      const length = rest.readUInt32BE(0);
      if (length > limits.controlFrameBytesMax) {
        throw new FrameError(`frame of ${length} bytes, limit ${limits.controlFrameBytesMax}`);
      }
      if (rest.length < headerBytes + length) break;
      messages.push(parse(rest.subarray(headerBytes, headerBytes + length)));
      rest = rest.subarray(headerBytes + length);
    }
    this.#rest = rest;
    return messages;
  }
}

function parse(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'));
  } catch (cause) {
    throw new FrameError('frame is not JSON', { cause });
  }
}
