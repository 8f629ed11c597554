/** Codec and keys: what is stored, rotation, and everything that must not be accepted. */
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defaultPayloadConverter } from '@temporalio/common';
import type { Payload } from '@temporalio/common';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { createPayloadCodec, payloadBytesMax, payloadEncoding } from './payload-codec.ts';
import { createPayloadKeys, openPayloadKeys, rotatePayloadKeys } from './payload-keys.ts';

const folder = mkdtempSync(join(tmpdir(), 'novacron-payloads-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let fileNumber = 0;
async function keyFile(): Promise<string> {
  fileNumber += 1;
  const path = join(folder, `keys-${fileNumber}.json`);
  await createPayloadKeys(path, 1_000);
  return path;
}
const payloadOf = (value: unknown): Payload => defaultPayloadConverter.toPayload(value);
const valueOf = (payload: Payload | undefined): unknown =>
  defaultPayloadConverter.fromPayload(payload ?? {});
async function sealOne(codec: ReturnType<typeof createPayloadCodec>, value: unknown): Promise<Payload> {
  const [sealed] = await codec.encode([payloadOf(value)]);
  if (sealed === undefined) throw new Error('nothing was sealed');
  return sealed;
}

describe('the payload codec', () => {
  it('gives back every value, and shows none of it', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    await fc.assert(fc.asyncProperty(fc.jsonValue({ maxDepth: 3 }), async (value) => {
      const sealed = await sealOne(codec, value);
      const [opened] = await codec.decode([sealed]);
      expect(valueOf(opened)).toEqual(JSON.parse(JSON.stringify(value)));
    }), { numRuns: 200 });
    const secret = 'a-secret-that-must-not-be-seen';
    const sealed = await sealOne(codec, { secret });
    expect(Buffer.from(sealed.data ?? []).includes(secret)).toBe(false);
    expect(Buffer.from(sealed.metadata?.['encoding'] ?? []).toString()).toBe(payloadEncoding);
  });

  it('compresses what is large', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    const sealed = await sealOne(codec, 'novacron '.repeat(10_000));
    expect(sealed.data?.length).toBeLessThan(1_000);
  });

  it('never makes the same cipher text twice', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    const [one, two] = [await sealOne(codec, 1), await sealOne(codec, 1)];
    expect(Buffer.from(one.data ?? []).equals(Buffer.from(two.data ?? []))).toBe(false);
  });

  it('reads old payloads after a rotation, and encrypts with the new key', async () => {
    const path = await keyFile();
    let now = 0;
    const codec = createPayloadCodec(openPayloadKeys(path, () => now));
    const old = await sealOne(codec, 'old');
    const id = await rotatePayloadKeys(path, 2_000);
    now += 10_000;
    const fresh = await sealOne(codec, 'new');
    expect(Buffer.from(fresh.metadata?.['novacron-key-id'] ?? []).toString()).toBe(id);
    expect((await codec.decode([old, fresh])).map(valueOf)).toEqual(['old', 'new']);
  });

  it('a process that has not looked yet reads payloads of the new key', async () => {
    const path = await keyFile();
    const slow = createPayloadCodec(openPayloadKeys(path, () => 0));
    await rotatePayloadKeys(path, 2_000);
    const sealed = await sealOne(createPayloadCodec(openPayloadKeys(path)), 'new');
    expect((await slow.decode([sealed])).map(valueOf)).toEqual(['new']);
  });

  it('refuses the payloads of another key', async () => {
    const sealed = await sealOne(createPayloadCodec(openPayloadKeys(await keyFile())), 'mine');
    const other = createPayloadCodec(openPayloadKeys(await keyFile()));
    await expect(other.decode([sealed])).rejects.toThrow(/no payload key/);
  });

  it('notices each changed byte', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    const sealed = await sealOne(codec, { epoch: 7 });
    const data = Buffer.from(sealed.data ?? []);
    for (let at = 0; at < data.length; at += 1) {
      const changed = Buffer.from(data);
      changed.writeUInt8(changed.readUInt8(at) ^ 1, at);
      await expect(codec.decode([{ ...sealed, data: changed }])).rejects.toThrow();
    }
  });

  it('never crashes on garbage', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    const metadata = { encoding: new TextEncoder().encode(payloadEncoding) };
    await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (data) => {
      await expect(codec.decode([{ metadata, data }])).rejects.toThrow(/payload/);
    }), { numRuns: 300 });
  });

  it('refuses what is too large, both ways', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    await expect(codec.encode([payloadOf('x'.repeat(payloadBytesMax))])).rejects.toThrow(/above/);
    const sealed = await sealOne(codec, 1);
    const data = Buffer.from(sealed.data ?? []);
    data.writeUInt32BE(payloadBytesMax + 1, 2);
    await expect(codec.decode([{ ...sealed, data }])).rejects.toThrow(/claims/);
  });

  it('lets payloads of others pass', async () => {
    const codec = createPayloadCodec(openPayloadKeys(await keyFile()));
    expect((await codec.decode([payloadOf('plain')])).map(valueOf)).toEqual(['plain']);
  });
});

describe('the key file', () => {
  it('is for its owner alone, and refused when it is not', async () => {
    const path = await keyFile();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    chmodSync(path, 0o644);
    expect(() => openPayloadKeys(path)).toThrow(/chmod 600/);
  });

  it('is not made twice', async () => {
    const path = await keyFile();
    const before = readFileSync(path, 'utf8');
    await createPayloadKeys(path, 9_000);
    expect(readFileSync(path, 'utf8')).toBe(before);
  });

  it('is refused without showing what is in it', () => {
    const path = join(folder, 'bad.json');
    const key = Buffer.alloc(31, 1).toString('base64');
    writeFileSync(path, JSON.stringify({ version: 1, keys: [{ id: 'a', createdAtMs: 1, keyBase64: key }] }), { mode: 0o600 });
    expect(() => openPayloadKeys(path)).toThrow(/keys\.0\.keyBase64/);
    expect(() => openPayloadKeys(path)).not.toThrow(new RegExp(key.slice(0, 10)));
    writeFileSync(path, `{ ${key}`, { mode: 0o600 });
    expect(() => openPayloadKeys(path)).toThrow(/not JSON/);
    expect(() => openPayloadKeys(join(folder, 'none.json'))).toThrow(/can't be read/);
  });
});
