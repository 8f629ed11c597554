/**
 * What Temporal stores of our payloads: compressed (zstd), then encrypted (AES-256-GCM).
 *
 * Frame, version 1 (big endian):
 *
 *     0      version = 1
 *     1      flags: 1 = zstd
 *     2..5   length of the plain payload, bytes
 *     6..17  nonce
 *     18..33 tag
 *     34..   cipher text of the protobuf Payload, compressed if flagged
 *
 * Bytes 0..5 and the key's id are authenticated. The key's id is in the metadata, so that it can be
 * read without a key. Nonces are random: 2^32 payloads a key keep a collision below 2^-32.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import type { Payload, PayloadCodec } from '@temporalio/common';
import { ValueError } from '@temporalio/common';
import proto from '@temporalio/proto';
import { compress, decompress } from 'zstd-napi';
import type { PayloadKeys } from './payload-keys.ts';

/** Value of the metadata `encoding` of our frames. */
export const payloadEncoding = 'binary/novacron-encrypted';
const keyIdField = 'novacron-key-id';
/**
 * Largest plain payload: Temporal refuses 2 MB, ours are ids, counters and digests. The bound also
 * holds for what a frame claims to expand to.
 */
export const payloadBytesMax = 1 << 20;
/** Below this zstd's own frame is longer than what it saves. */
const compressBytesMin = 256;

const frameVersion = 1;
const zstdFlag = 1;
const nonceAt = 6;
const tagAt = 18;
const bodyAt = 34;
const nonceBytes = 12;
const tagBytes = 16;

const text = new TextDecoder();
const encoder = new TextEncoder();

function seal(payload: Payload, keys: PayloadKeys): Payload {
  const plain = proto.temporal.api.common.v1.Payload.encode(payload).finish();
  if (plain.length > payloadBytesMax) {
    throw new ValueError(`a payload of ${plain.length} bytes is above ${payloadBytesMax}`);
  }
  const { id, key } = keys.newest();
  const isLarge = plain.length >= compressBytesMin;
  const packed = isLarge ? compress(plain) : plain;
  const isSmaller = packed.length < plain.length;
  const head = Buffer.alloc(nonceAt);
  head.writeUInt8(frameVersion, 0);
  head.writeUInt8(isSmaller ? zstdFlag : 0, 1);
  head.writeUInt32BE(plain.length, 2);
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: tagBytes });
  cipher.setAAD(Buffer.concat([head, Buffer.from(id)]));
  const body = Buffer.concat([cipher.update(isSmaller ? packed : plain), cipher.final()]);
  return {
    metadata: { encoding: encoder.encode(payloadEncoding), [keyIdField]: encoder.encode(id) },
    data: Buffer.concat([head, nonce, cipher.getAuthTag(), body]),
  };
}

function open(payload: Payload, keys: PayloadKeys): Payload {
  const data = Buffer.from(payload.data ?? []);
  const id = text.decode(payload.metadata?.[keyIdField] ?? new Uint8Array());
  if (data.length < bodyAt || data.length > payloadBytesMax + bodyAt) {
    throw new ValueError(`an encrypted payload has ${data.length} bytes`);
  }
  if (data.readUInt8(0) !== frameVersion) {
    throw new ValueError(`encrypted payloads of version ${data.readUInt8(0)} are not known here`);
  }
  const plainLength = data.readUInt32BE(2);
  if (plainLength > payloadBytesMax) {
    throw new ValueError(`an encrypted payload claims ${plainLength} bytes`);
  }
  const key = keys.byId(id);
  if (key === null) throw new ValueError(`no payload key ${JSON.stringify(id.slice(0, 40))}`);
  const decipher = createDecipheriv(
    'aes-256-gcm', key.key, data.subarray(nonceAt, tagAt), { authTagLength: tagBytes },
  );
  decipher.setAAD(Buffer.concat([data.subarray(0, nonceAt), Buffer.from(id)]));
  decipher.setAuthTag(data.subarray(tagAt, bodyAt));
  let packed: Buffer;
  try {
    packed = Buffer.concat([decipher.update(data.subarray(bodyAt)), decipher.final()]);
  } catch {
    throw new ValueError(`an encrypted payload of key ${id} is damaged`);
  }
  const isCompressed = (data.readUInt8(1) & zstdFlag) !== 0;
  const plain = isCompressed ? decompress(packed) : packed;
  if (plain.length !== plainLength) {
    throw new ValueError(`an encrypted payload has ${plain.length} of ${plainLength} bytes`);
  }
  return proto.temporal.api.common.v1.Payload.decode(plain);
}

const isSealed = (payload: Payload): boolean =>
  text.decode(payload.metadata?.['encoding'] ?? new Uint8Array()) === payloadEncoding;

/**
 * The codec of every client, worker and of the codec server. Payloads that are not ours pass as
 * they are (search attributes and what other tools wrote); ours that are damaged, too large or of
 * an unknown key throw ValueError, never a part of their content.
 */
export const createPayloadCodec = (keys: PayloadKeys): PayloadCodec => ({
  encode: async (payloads) => payloads.map((payload) => seal(payload, keys)),
  decode: async (payloads) => payloads.map(
    (payload) => (isSealed(payload) ? open(payload, keys) : payload),
  ),
});
