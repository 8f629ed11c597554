/**
 * Storage that forgets what was not synced: the fake of the ledger's disk, for tests and for the
 * simulator. It can lose power at any moment and run out of room.
 */
import type { AppendFile, LogStorage } from './log-storage.ts';

interface MemoryFile {
  durable: Buffer;
  /** Written, not synced. */
  loose: Buffer;
}

export interface MemoryStorage extends LogStorage {
  /** The same disk after a power failure: of each unsynced write the first `keptBytes` survive. */
  losePower(keptBytes: (looseBytes: number) => number): MemoryStorage;
  /** From now on writes beyond this size in all fail with ENOSPC; null for no limit. */
  limitTo(sizeBytes: number | null): void;
  /** Changes one durable byte, as a failing disk does. */
  damage(at: { readonly name: string; readonly offset: number }): void;
  syncCount(): number;
}

function noSpace(): Error {
  return Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
}

export function memoryStorage(initial: ReadonlyMap<string, Buffer> = new Map()): MemoryStorage {
  const files = new Map<string, MemoryFile>();
  for (const [name, durable] of initial) files.set(name, { durable, loose: Buffer.alloc(0) });
  let limit: number | null = null;
  let syncs = 0;
  const fileOf = (name: string): MemoryFile => {
    const file = files.get(name);
    if (file === undefined) throw Object.assign(new Error(`ENOENT: ${name}`), { code: 'ENOENT' });
    return file;
  };
  const used = (): number =>
    [...files.values()].reduce((sum, file) => sum + file.durable.length + file.loose.length, 0);
  const room = (): number => (limit === null ? Infinity : Math.max(0, limit - used()));

  const openAppend = async (name: string): Promise<AppendFile> => {
    const file = fileOf(name);
    return {
      append: async (bytes) => {
        const fits = Math.min(bytes.length, room());
        file.loose = Buffer.concat([file.loose, bytes.subarray(0, fits)]);
        if (fits < bytes.length) throw noSpace();
      },
      sync: async () => {
        syncs += 1;
        file.durable = Buffer.concat([file.durable, file.loose]);
        file.loose = Buffer.alloc(0);
      },
      truncate: async (sizeBytes) => {
        file.durable = Buffer.concat([file.durable, file.loose]).subarray(0, sizeBytes);
        file.loose = Buffer.alloc(0);
      },
      close: async () => {},
    };
  };
  return {
    list: async () => [...files.keys()],
    read: async (name) => Buffer.concat([fileOf(name).durable, fileOf(name).loose]),
    writeWhole: async (name, bytes) => {
      if (bytes.length > room()) throw noSpace();
      files.set(name, { durable: Buffer.from(bytes), loose: Buffer.alloc(0) });
    },
    openAppend,
    remove: async (name) => {
      files.delete(name);
    },
    losePower: (keptBytes) => {
      const left = new Map<string, Buffer>();
      for (const [name, { durable, loose }] of files) {
        left.set(name, Buffer.concat([durable, loose.subarray(0, keptBytes(loose.length))]));
      }
      return memoryStorage(left);
    },
    limitTo: (sizeBytes) => {
      limit = sizeBytes;
    },
    damage: ({ name, offset }) => {
      const { durable } = fileOf(name);
      durable[offset] = (durable[offset] ?? 0) ^ 0xff;
    },
    syncCount: () => syncs,
  };
}
