/**
 * Takes certificates back: the authority writes `revoked.json`, every process reads it again when
 * it changes. The list is signed by the authority, so that a copy on another host can't be forged;
 * an unreadable or unsigned list is refused and the last good one stays in force.
 *
 * File: `{version:1, serials:[hex…], entries:[…], issuedAtMs, signature}`; `serials` alone is what
 * a reader without the details needs.
 */
import { sign, verify, createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';
import { identityUri } from '../contracts/identity.ts';
import { publicFileMode, withLockFile, writeFileAtomically } from './atomic-file.ts';
import { listCertificates, openAuthority } from './certificates.ts';

/** Certificates live at most 825 days: more revoked ones than this are a mistake. */
const revokedCountMax = 100_000;
/** How often an idle process looks at the file. */
const lookEveryMs = 1_000;

const serialText = z.string().regex(/^[0-9a-f]{2,40}$/);
const revokedFile = z.strictObject({
  version: z.literal(1),
  issuedAtMs: z.number(),
  serials: z.array(serialText).max(revokedCountMax),
  entries: z.array(z.strictObject({
    serial: serialText, identity: z.string(), reason: z.string(), atMs: z.number(),
  })).max(revokedCountMax),
  signature: z.string(),
});
type RevokedFile = z.infer<typeof revokedFile>;

const signedPart = ({ version, issuedAtMs, serials, entries }: Omit<RevokedFile, 'signature'>) =>
  Buffer.from(JSON.stringify([version, issuedAtMs, serials,
    entries.map(({ serial, identity, reason, atMs }) => [serial, identity, reason, atMs])]));

function parseRevoked(path: string, text: string, caPem: string): RevokedFile {
  const parsed = revokedFile.safeParse(JSON.parse(text));
  if (!parsed.success) {
    throw new CodedError('input/invalid', `${path}: ${z.prettifyError(parsed.error)}`);
  }
  const { signature, ...rest } = parsed.data;
  const key = new X509Certificate(caPem).publicKey;
  if (!verify('sha256', signedPart(rest), key, Buffer.from(signature, 'base64'))) {
    throw new CodedError('input/invalid', `${path}: the authority did not sign this list`);
  }
  return parsed.data;
}

async function writeRevoked(
  dir: string, nowMs: number, entries: RevokedFile['entries'],
): Promise<void> {
  const unsigned = {
    version: 1 as const, issuedAtMs: nowMs, serials: entries.map(({ serial }) => serial), entries,
  };
  const key = createPrivateKey(await readFile(join(dir, 'ca-key.pem'), 'utf8'));
  const signature = sign('sha256', signedPart(unsigned), key).toString('base64');
  await writeFileAtomically({
    path: join(dir, 'revoked.json'),
    data: `${JSON.stringify({ ...unsigned, signature }, null, 1)}\n`,
    mode: publicFileMode,
  });
}

/** Writes an empty list where none is; every process wants one at its start. */
export async function createRevocationList(
  { dir, nowMs }: { readonly dir: string; readonly nowMs: number },
): Promise<string> {
  const path = join(dir, 'revoked.json');
  await withLockFile(join(dir, 'revoked.lock'), async () => {
    if (await readFile(path).then(() => false, () => true)) await writeRevoked(dir, nowMs, []);
  });
  return path;
}

export interface RevocationRequest {
  readonly dir: string;
  /** One serial (hex), or all certificates of an identity (`role/name`). */
  readonly of: { readonly serial: string } | { readonly identity: string };
  readonly reason: string;
  readonly nowMs: number;
  /** Serials that stay good, e.g. the fresh one of a rotation. */
  readonly except?: readonly string[];
}

/**
 * Revokes certificates and answers the serials that were not revoked before. Repeats do nothing.
 */
export async function revokeCertificates(
  { dir, of, reason, nowMs, except = [] }: RevocationRequest,
): Promise<readonly string[]> {
  const { caPem } = await openAuthority(dir);
  const path = await createRevocationList({ dir, nowMs });
  const issued = await listCertificates(dir);
  const chosen = issued.filter((one) => !except.includes(one.serial) && ('serial' in of
    ? one.serial === of.serial.toLowerCase()
    : identityUri(one.identity) === `novacron://${of.identity}`));
  if (chosen.length === 0) {
    const what = 'serial' in of ? `serial ${of.serial}` : of.identity;
    throw new CodedError('input/invalid',
      `${what.slice(0, 80)}: this authority issued no such certificate; `
        + 'see `novacron cert list`');
  }
  return withLockFile(join(dir, 'revoked.lock'), async () => {
    const { entries } = parseRevoked(path, await readFile(path, 'utf8'), caPem);
    const known = new Set(entries.map(({ serial }) => serial));
    const fresh = chosen.filter(({ serial }) => !known.has(serial));
    await writeRevoked(dir, nowMs, [...entries, ...fresh.map(({ serial, identity }) =>
      ({ serial, identity: identityUri(identity), reason, atMs: nowMs }))]);
    return fresh.map(({ serial }) => serial);
  });
}

/** What connections are checked against. Reads the file again when it changed, at each question. */
export interface RevocationList {
  isRevoked(serial: string): boolean;
  /** Calls back after each change of the file, until stopped; looks once a second. */
  onChange(listener: () => void): () => void;
  /** Revoked ones with reason, for `cert list`. */
  entries(): RevokedFile['entries'];
}

/**
 * Opens a list. The first read must succeed (`input/invalid` says how to make one); later a broken
 * file is reported once to `onProblem` and the last good list stays in force.
 */
export function openRevocationList(
  { path, caPath, onProblem = () => {} }: {
    readonly path: string; readonly caPath: string; readonly onProblem?: (error: Error) => void;
  },
): RevocationList {
  const caPem = readFileSync(caPath, 'utf8');
  let seen = '';
  let current: RevokedFile;
  let serials = new Set<string>();
  const stamp = (): string => {
    const { mtimeNs, ino, size } = statSync(path, { bigint: true });
    return `${mtimeNs}/${ino}/${size}`;
  };
  const read = (): void => {
    seen = stamp();
    const next = parseRevoked(path, readFileSync(path, 'utf8'), caPem);
    if (current !== undefined && next.issuedAtMs < current.issuedAtMs) {
      throw new CodedError('input/invalid', `${path}: older than the list in force`);
    }
    current = next;
    serials = new Set(next.serials);
  };
  const refresh = (): void => {
    try {
      if (stamp() !== seen) read();
    } catch (error) {
      const problem = error instanceof Error ? error : new Error(String(error));
      const mark = `problem: ${problem.message}`;
      if (lastProblem !== mark) onProblem(problem);
      lastProblem = mark;
    }
  };
  let lastProblem = '';
  try {
    read();
  } catch (error) {
    throw error instanceof CodedError ? error : new CodedError('input/invalid',
      `${path}: no readable revocation list; \`novacron cert init\` makes one`, error);
  }
  return {
    isRevoked: (serial) => {
      refresh();
      return serials.has(serial.toLowerCase());
    },
    onChange: (listener) => {
      let last = seen;
      const timer = setInterval(() => {
        refresh();
        if (seen !== last) {
          last = seen;
          listener();
        }
      }, lookEveryMs);
      timer.unref();
      return () => clearInterval(timer);
    },
    entries: () => {
      refresh();
      return current.entries;
    },
  };
}
