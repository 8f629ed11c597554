/**
 * Writes small files so that a reader sees the old or the new content, never a part, also after a
 * power cut. Decides nothing about what is in them.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CodedError } from '../contracts/failures.ts';

/** Mode of files that hold keys or tokens: their owner alone. */
export const secretFileMode = 0o600;
/** Mode of files that everybody on the host may read: certificates, revocations. */
export const publicFileMode = 0o644;

/** How long a lock of another process is waited for; a holder needs a few milliseconds. */
const lockWaitMsMax = 5_000;
const lockRetryMs = 20;

export interface AtomicWrite {
  readonly path: string;
  readonly data: string | Uint8Array;
  readonly mode: number;
}

/** Replaces a file as a whole: temporary file beside it, fsync, rename, fsync of the folder. */
export async function writeFileAtomically({ path, data, mode }: AtomicWrite): Promise<void> {
  const folder = dirname(path);
  await mkdir(folder, { recursive: true, mode: 0o755 });
  const temporary = `${path}.${randomBytes(6).toString('hex')}.new`;
  try {
    const file = await open(temporary, 'wx', mode);
    try {
      await file.chmod(mode);
      await file.writeFile(data);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Runs an action while `path` exists and is ours: one writer at a time among processes. Fails with
 * `input/invalid` when another holds it for more than 5 s, naming the file to look at.
 */
export async function withLockFile<T>(path: string, action: () => Promise<T>): Promise<T> {
  const started = performance.now();
  for (;;) {
    try {
      await (await open(path, 'wx', secretFileMode)).close();
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      if (performance.now() - started > lockWaitMsMax) {
        throw new CodedError('input/invalid',
          `${path}: another command holds it; remove the file when none runs`, error);
      }
      await new Promise((resolve) => setTimeout(resolve, lockRetryMs));
    }
  }
  try {
    return await action();
  } finally {
    await rm(path, { force: true });
  }
}
