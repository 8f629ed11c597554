// Remembers what each step was done for: a digest of its inputs beside its output. A step is
// repeated when an input changed or its output is gone; a half-done step has no stamp.
import { createHash } from 'node:crypto';
import {
  existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { SetupError } from './process.mjs';

const skippedFolders = new Set(['target', 'node_modules', 'build', 'generated', '.git', '.cache']);

const filesUnder = (path) => {
  if (!existsSync(path)) return [];
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path).sort().filter((name) => !skippedFolders.has(name))
    .flatMap((name) => filesUnder(join(path, name)));
};

/** Digest of files and folders (by content) and of plain words. */
export const digestOf = ({ root, paths = [], words = [] }) => {
  const hash = createHash('sha256');
  for (const word of words) hash.update(`${word}\0`);
  for (const path of paths.flatMap((entry) => filesUnder(join(root, entry)))) {
    hash.update(`${path.slice(root.length)}\0`).update(readFileSync(path)).update('\0');
  }
  return hash.digest('hex');
};

/** Stamps of the steps, one small file each. */
export class Stamps {
  #folder;

  constructor(folder) {
    this.#folder = folder;
    mkdirSync(folder, { recursive: true });
  }

  holds(name, digest) {
    try {
      return readFileSync(join(this.#folder, name), 'utf8') === digest;
    } catch {
      return false;
    }
  }

  set(name, digest) {
    const path = join(this.#folder, name);
    writeFileSync(`${path}.${process.pid}`, digest);
    renameSync(`${path}.${process.pid}`, path);
  }
}

/** When a process began, in clock ticks since boot: tells a reused id from its old owner. */
const startOf = (pid) => {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[19];
  } catch {
    return null;
  }
};

/** Longest wait for another run: longer than the slowest cold set-up. */
const lockWaitMsMax = 30 * 60_000;

/** One bootstrap at a time; a lock whose holder has died is taken over. */
export const takeLock = async (path, onWait) => {
  const own = JSON.stringify({ pid: process.pid, start: startOf(process.pid) });
  const until = Date.now() + lockWaitMsMax;
  for (let told = false; ; ) {
    try {
      writeFileSync(path, own, { flag: 'wx' });
      let isHeld = true;
      return () => {
        // Once only: by a second call the lock may be another run's.
        if (isHeld) rmSync(path, { force: true });
        isHeld = false;
      };
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    let holder;
    try { holder = JSON.parse(readFileSync(path, 'utf8')); } catch { holder = null; }
    if (holder && startOf(holder.pid) !== holder.start) {
      rmSync(path, { force: true });
      continue;
    }
    if (Date.now() > until) {
      throw new SetupError(`another set-up (process ${holder?.pid}) holds ${path}: `
        + 'end it and run this again');
    }
    if (!told && holder) {
      told = true;
      onWait(holder.pid);
    }
    await new Promise((wake) => { setTimeout(wake, 500); });
  }
};
