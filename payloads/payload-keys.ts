/**
 * The file of payload keys: who may read what Temporal stores. Decides which key encrypts (the
 * newest) and which decrypt (all); the frame is payload-codec.ts's.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';
import { secretFileMode, withLockFile, writeFileAtomically } from './atomic-file.ts';

/** AES-256. */
export const payloadKeyBytes = 32;
/** A key a day for a year; older payloads are past any retention by then. */
const keyCountMax = 366;
/** A rotation reaches running processes within this time. */
const lookAgainMs = 2_000;

const keyFile = z.strictObject({
  version: z.literal(1),
  keys: z.array(z.strictObject({
    id: z.string().regex(/^[a-z0-9-]{1,32}$/),
    createdAtMs: z.int().min(0),
    keyBase64: z.base64().refine((text) => Buffer.from(text, 'base64').length === payloadKeyBytes),
  })).min(1).max(keyCountMax),
});
type KeyFile = z.infer<typeof keyFile>;

/** One AES-256 key with its name. */
export interface PayloadKey {
  readonly id: string;
  readonly key: Buffer;
}

/** Where a codec gets its keys. */
export interface PayloadKeys {
  /** The key that encrypts now. */
  newest(): PayloadKey;
  /** Null when no such key is known, also after looking again. */
  byId(id: string): PayloadKey | null;
}

const newKey = (nowMs: number): KeyFile['keys'][number] => ({
  id: `k${nowMs.toString(36)}-${randomBytes(4).toString('hex')}`,
  createdAtMs: nowMs,
  keyBase64: randomBytes(payloadKeyBytes).toString('base64'),
});

function parseKeyFile(path: string): KeyFile {
  let text: string;
  try {
    const { mode } = statSync(path);
    if ((mode & 0o077) !== 0) {
      throw new CodedError('input/invalid', `${path} is open to others: chmod 600 it`);
    }
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (error instanceof CodedError) throw error;
    throw new CodedError('input/invalid', `payload keys ${path} can't be read`, error);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    // The parser's message would quote the text, which holds keys.
    throw new CodedError('input/invalid', `${path} is not JSON`);
  }
  const parsed = keyFile.safeParse(json);
  if (parsed.success) return parsed.data;
  const where = parsed.error.issues.map(({ path: at }) => at.join('.')).join(', ');
  throw new CodedError('input/invalid', `${path} is not a payload key file: ${where}`);
}

const write = (path: string, file: KeyFile): Promise<void> => writeFileAtomically({
  path, data: `${JSON.stringify(file, null, 2)}\n`, mode: secretFileMode,
});

/** Makes a key file with one key, 0600; answers the key's id. An existing file is left as it is. */
export function createPayloadKeys(path: string, nowMs: number): Promise<string> {
  return withLockFile(`${path}.lock`, async () => {
    const exists = statSync(path, { throwIfNoEntry: false }) !== undefined;
    if (exists) return parseKeyFile(path).keys.at(-1)?.id ?? '';
    const key = newKey(nowMs);
    await write(path, { version: 1, keys: [key] });
    return key.id;
  });
}

/** Adds a key that encrypts from now on; the older ones go on decrypting. Answers its id. */
export function rotatePayloadKeys(path: string, nowMs: number): Promise<string> {
  return withLockFile(`${path}.lock`, async () => {
    const { keys } = parseKeyFile(path);
    const key = newKey(nowMs);
    await write(path, { version: 1, keys: [...keys, key].slice(-keyCountMax) });
    return key.id;
  });
}

/**
 * Follows a key file: a rotation is seen within 2 s, a payload of an unknown key looks again at
 * once. `input/invalid` when the file is missing, damaged or readable by others.
 */
export function openPayloadKeys(path: string, now: () => number = Date.now): PayloadKeys {
  let lookedAtMs = -Infinity;
  let readAtMtime = -1;
  let keys: readonly PayloadKey[] = [];
  const look = (isForced: boolean): void => {
    if (!isForced && now() - lookedAtMs < lookAgainMs) return;
    lookedAtMs = now();
    const mtime = statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? -2;
    // A file that vanished from under a running process is an operator's slip: the keys stay.
    if (mtime === readAtMtime || (mtime === -2 && keys.length > 0)) return;
    keys = parseKeyFile(path).keys.map(
      ({ id, keyBase64 }) => ({ id, key: Buffer.from(keyBase64, 'base64') }),
    );
    readAtMtime = mtime;
  };
  look(true);
  const find = (id: string): PayloadKey | null => keys.find((key) => key.id === id) ?? null;
  return {
    newest() {
      look(false);
      const newest = keys.at(-1);
      if (newest === undefined) throw new CodedError('internal', 'no payload key');
      return newest;
    },
    byId(id) {
      const known = find(id);
      if (known !== null) return known;
      look(true);
      return find(id);
    },
  };
}
