/**
 * One writer a directory: a lock file that names its holder (pid, start time, boot). A holder that
 * died leaves a file that the next one recognises as stale. It guards against a second ledger by
 * mistake on the same machine and pid namespace, not against a shared network file system.
 */
import { link, readFile, rename, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CodedError } from '../../../contracts/failures.ts';

const lockName = 'lock';

/** Start time of a process in clock ticks since boot; null when there is none. */
async function startTicks(pid: string): Promise<string | null> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    // The command name may hold blanks and brackets; fields are counted after its last bracket.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}

async function whoAmI(): Promise<string> {
  const boot = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  return `${process.pid} ${await startTicks(String(process.pid))} ${boot}`;
}

async function isAlive(holder: string, me: string): Promise<boolean> {
  const [pid = '', ticks, boot] = holder.trim().split(' ');
  return me.endsWith(` ${boot}`) && /^\d+$/.test(pid) && await startTicks(pid) === ticks;
}

/** Takes the directory or throws `ownership/refused`; answers how to give it back. */
export async function lockDirectory(dir: string): Promise<() => Promise<void>> {
  const lock = join(dir, lockName);
  const me = await whoAmI();
  const mine = join(dir, `${lockName}.${process.pid}.${Math.random().toString(36).slice(2)}`);
  await writeFile(mine, me, { mode: 0o600 });
  try {
    for (;;) {
      try {
        await link(mine, lock);
        return async () => unlink(lock);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const holder = await readFile(lock, 'utf8').catch(() => '');
      if (await isAlive(holder, me)) {
        throw new CodedError(
          'ownership/refused', `${dir} is in use by process ${holder.split(' ')[0]}`,
        );
      }
      // Another starter may have replaced the stale lock since it was read: give that one back.
      const taken = `${mine}.taken`;
      await rename(lock, taken).catch(() => {});
      const held = await readFile(taken, 'utf8').catch(() => '');
      if (held !== '' && await isAlive(held, me)) await link(taken, lock).catch(() => {});
      await unlink(taken).catch(() => {});
    }
  } finally {
    await unlink(mine).catch(() => {});
  }
}
