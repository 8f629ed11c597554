/**
 * The few file operations that the ledger's log needs, and their form on a real directory.
 * Decides how something becomes durable; what is written is durable-log.ts's business.
 */
import { close, fdatasync, ftruncate, open, write } from 'node:fs';
import { mkdir, open as openHandle, readFile, readdir, rename, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

/** A file that only grows; `append` has no effect that counts before `sync` has returned. */
export interface AppendFile {
  append(bytes: Buffer): Promise<void>;
  sync(): Promise<void>;
  /** Cuts the file, durably. */
  truncate(sizeBytes: number): Promise<void>;
  close(): Promise<void>;
}

export interface LogStorage {
  list(): Promise<readonly string[]>;
  read(name: string): Promise<Buffer>;
  /** Writes a whole file: after it returns the file is there and whole, else it is not there. */
  writeWhole(name: string, bytes: Buffer): Promise<void>;
  openAppend(name: string): Promise<AppendFile>;
  remove(name: string): Promise<void>;
}

const openFile = promisify(open);
const writeFile = promisify(write);
const syncFile = promisify(fdatasync);
const truncateFile = promisify(ftruncate);
const closeFile = promisify(close);

async function syncDirectory(dir: string): Promise<void> {
  const handle = await openHandle(dir, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function appendFile(path: string): Promise<AppendFile> {
  const file = await openFile(path, 'a', 0o600);
  return {
    append: async (bytes) => {
      let written = 0;
      while (written < bytes.length) {
        const { bytesWritten } = await writeFile(file, bytes, written);
        written += bytesWritten;
      }
    },
    sync: () => syncFile(file),
    truncate: async (sizeBytes) => {
      await truncateFile(file, sizeBytes);
      await syncFile(file);
    },
    close: () => closeFile(file),
  };
}

/** Storage in a directory of a local file system; made (0700) when it is not there. */
export async function directoryStorage(dir: string): Promise<LogStorage> {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await syncDirectory(join(dir, '..'));
  return {
    list: () => readdir(dir),
    read: (name) => readFile(join(dir, name)),
    writeWhole: async (name, bytes) => {
      const temporary = join(dir, `${name}.tmp`);
      try {
        const handle = await openHandle(temporary, 'w', 0o600);
        try {
          await handle.writeFile(bytes);
          await handle.sync();
        } finally {
          await handle.close();
        }
        await rename(temporary, join(dir, name));
      } catch (error) {
        // A half-written file may hold the last blocks of a full disk.
        await unlink(temporary).catch(() => {});
        throw error;
      }
      await syncDirectory(dir);
    },
    openAppend: (name) => appendFile(join(dir, name)),
    remove: async (name) => {
      await unlink(join(dir, name));
      await syncDirectory(dir);
    },
  };
}
