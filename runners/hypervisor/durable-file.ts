/**
 * Small files that must survive a crash: written whole, flushed, then renamed into place, and the
 * directory flushed too. Decides nothing about what is in them.
 */
import { constants } from 'node:fs';
import { chown, open, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';

/** Files of ours are a few KiB; a larger one is damage. */
const fileBytesMax = 1024 * 1024;
let temporaryCount = 0;

/** Flushes a directory, so that names made or removed in it are durable. */
export async function flushDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Writes `text` so that a reader sees the old file or the new one, never a part, whatever crashes.
 * Costs two flushes (about 0.4 ms on a disk with a write cache).
 */
export async function writeDurably(
  path: string,
  text: string,
  options: { readonly mode?: number; readonly uid?: number; readonly gid?: number } = {},
): Promise<void> {
  temporaryCount += 1;
  const temporary = `${path}.${process.pid}-${temporaryCount}.new`;
  const handle = await open(temporary, 'wx', options.mode ?? 0o600);
  try {
    await handle.writeFile(text);
    await handle.sync();
  } finally {
    await handle.close();
  }
  if (options.uid !== undefined) await chown(temporary, options.uid, options.gid ?? options.uid);
  await rename(temporary, path);
  await flushDirectory(dirname(path));
}

/** Reads and checks a JSON file of ours; null when there is none. Failure: host/files. */
export async function readChecked<T>(path: string, shape: z.ZodType<T>): Promise<T | null> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  if (text.length > fileBytesMax) throw new CodedError('host/files', `${path} is too large`);
  try {
    return shape.parse(JSON.parse(text));
  } catch (error) {
    throw new CodedError('host/files', `${path} is damaged: ${String(error).slice(0, 300)}`, error);
  }
}

/** Last bytes of a regular file, '' when there is none; never follows a link, never waits. */
export async function readTail(path: string, bytesMax: number): Promise<string> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  let handle;
  try {
    handle = await open(path, flags);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw new CodedError('host/files', String(error), error);
  }
  try {
    const fact = await handle.stat();
    if (!fact.isFile()) throw new CodedError('host/files', `${path} is not a file`);
    const length = Math.min(fact.size, bytesMax);
    const { buffer, bytesRead } = await handle.read(
      Buffer.alloc(length),
      0,
      length,
      fact.size - length,
    );
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await handle.close();
  }
}
