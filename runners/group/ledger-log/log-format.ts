/**
 * Bytes of the ledger's log and checkpoints, both directions; pure.
 *
 *     segment     header, record*
 *     header      "NVLEDGER" u32 version u48 firstIndex u16 0 u32 crc32c(of the bytes before)
 *     record      u32 length  u32 crc32c(length, payload)  payload
 *     payload     JSON {version, lines}: all lines of one sync, so that a record is whole or torn
 *     checkpoint  the same header with "NVLSTATE" and one record with the stored state
 *
 * All integers big-endian. A record is written only after the one before it is durable; therefore
 * an invalid record with a valid one behind it can't be a torn write: it is damage.
 */
import type { LogLine, StoredState } from '../ownership/state.ts';
import { crc32c } from './crc32c.ts';

export const logFormatVersion = 1;
export const headerBytes = 24;
const recordHeadBytes = 8;
/** A batch holds 256 proposals of at most one control frame; a larger length is damage. */
export const recordBytesMax = 256 * 1024 * 1024;
const magics = { segment: 'NVLEDGER', checkpoint: 'NVLSTATE' } as const;
export type LogFileKind = keyof typeof magics;

export function encodeHeader(kind: LogFileKind, firstIndex: number): Buffer {
  const bytes = Buffer.alloc(headerBytes);
  bytes.write(magics[kind], 0, 'latin1');
  bytes.writeUInt32BE(logFormatVersion, 8);
  bytes.writeUIntBE(firstIndex, 12, 6);
  bytes.writeUInt32BE(crc32c(bytes.subarray(0, 20)), 20);
  return bytes;
}

/** First index of a file, or what is wrong with its header. */
export function decodeHeader(
  kind: LogFileKind, bytes: Buffer,
): { readonly firstIndex: number } | { readonly problem: string } {
  if (bytes.length < headerBytes) return { problem: 'shorter than its header' };
  if (bytes.toString('latin1', 0, 8) !== magics[kind]) return { problem: `not a ${kind}` };
  if (bytes.readUInt32BE(20) !== crc32c(bytes.subarray(0, 20))) {
    return { problem: 'header checksum differs' };
  }
  const version = bytes.readUInt32BE(8);
  if (version !== logFormatVersion) return { problem: `format version ${version} is not known` };
  return { firstIndex: bytes.readUIntBE(12, 6) };
}

function encodeRecord(payload: Buffer): Buffer {
  const head = Buffer.alloc(recordHeadBytes);
  head.writeUInt32BE(payload.length, 0);
  head.writeUInt32BE(crc32c(payload, crc32c(head.subarray(0, 4))), 4);
  return Buffer.concat([head, payload]);
}

export const encodeLines = (lines: readonly LogLine[]): Buffer =>
  encodeRecord(Buffer.from(JSON.stringify({ version: logFormatVersion, lines })));

export const encodeCheckpoint = (state: StoredState): Buffer => Buffer.concat([
  encodeHeader('checkpoint', state.index), encodeRecord(Buffer.from(JSON.stringify(state))),
]);

/** Payload of the valid record at `offset`, null when there is none. */
function recordAt(bytes: Buffer, offset: number): Buffer | null {
  if (offset + recordHeadBytes > bytes.length) return null;
  const length = bytes.readUInt32BE(offset);
  const start = offset + recordHeadBytes;
  if (length === 0 || length > recordBytesMax || start + length > bytes.length) return null;
  const payload = bytes.subarray(start, start + length);
  const crc = crc32c(payload, crc32c(bytes.subarray(offset, offset + 4)));
  return crc === bytes.readUInt32BE(offset + 4) ? payload : null;
}

function parseLines(payload: Buffer): readonly LogLine[] | null {
  const value = JSON.parse(payload.toString()) as { version?: unknown; lines?: unknown };
  return value.version === logFormatVersion && Array.isArray(value.lines)
    ? (value.lines as LogLine[]) : null;
}

/** What a segment holds. `validBytes` < size means a torn tail; `problem` means damage. */
export interface SegmentScan {
  readonly firstIndex: number;
  readonly lines: readonly LogLine[];
  readonly validBytes: number;
  readonly problem: string | null;
}

/** Reads a whole segment and says whether what follows its last valid record is torn or damage. */
export function scanSegment(bytes: Buffer): SegmentScan {
  const header = decodeHeader('segment', bytes);
  if ('problem' in header) {
    return { firstIndex: 0, lines: [], validBytes: 0, problem: header.problem };
  }
  const lines: LogLine[] = [];
  let offset = headerBytes;
  const end = (problem: string | null): SegmentScan =>
    ({ firstIndex: header.firstIndex, lines, validBytes: offset, problem });
  while (offset < bytes.length) {
    const payload = recordAt(bytes, offset);
    if (payload === null) {
      const next = nextRecordAfter(bytes, offset);
      return end(next === null
        ? null : `the record at byte ${offset} is damaged (a valid one follows at ${next})`);
    }
    const batch = parseLines(payload);
    if (batch === null) return end(`the record at byte ${offset} has another version`);
    lines.push(...batch);
    offset += recordHeadBytes + payload.length;
  }
  return end(null);
}

function nextRecordAfter(bytes: Buffer, offset: number): number | null {
  for (let at = offset + 1; at + recordHeadBytes < bytes.length; at += 1) {
    // Every payload starts with '{'; this keeps the search linear in practice.
    if (bytes[at + recordHeadBytes] === 0x7b && recordAt(bytes, at) !== null) return at;
  }
  return null;
}

/** The state in a checkpoint, or what is wrong with it. */
export function decodeCheckpoint(bytes: Buffer): StoredState | { readonly problem: string } {
  const header = decodeHeader('checkpoint', bytes);
  if ('problem' in header) return header;
  const payload = recordAt(bytes, headerBytes);
  if (payload === null) return { problem: 'its record is damaged' };
  const state = JSON.parse(payload.toString()) as StoredState;
  if (state.version !== logFormatVersion) return { problem: 'its state has another version' };
  return state;
}
