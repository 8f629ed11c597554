/**
 * Takes the memory from processes: they get a cgroup whose limit is what they use there already, so
 * that the kernel kills one of them when it next needs a page. Only theirs; the machine's stays.
 */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CodedError } from '../../contracts/failures.ts';
import { until } from './waiting.ts';

/** Names of version 1, and of version 2, where the memory controller has to be on at the root. */
const versions = [
  {
    root: '/sys/fs/cgroup/memory', limit: 'memory.limit_in_bytes', used: 'memory.usage_in_bytes',
    unlimited: '-1',
  },
  { root: '/sys/fs/cgroup', limit: 'memory.max', used: 'memory.current', unlimited: 'max' },
] as const;
/** Until a killed process has left its cgroup. */
const emptyMsMax = 10_000;
const prefix = 'novacron-starved-';

/** Folder of a process's memory cgroup, from /proc/PID/cgroup. Pure. */
export function memoryGroupOf(text: string): string {
  const lines = text.trim().split('\n').map((line) => line.split(':'));
  const of = lines.find(([, controllers]) => controllers === 'memory')
    ?? lines.find(([number]) => number === '0');
  return of?.slice(2).join(':') ?? '/';
}

/** What was taken; `end` gives it back and removes the cgroup. */
export interface Starving {
  readonly end: () => Promise<void>;
}

/** Takes the memory from `pids` and from what they start. Failure: internal without cgroups. */
export function starve(pids: readonly number[], name: string): Starving {
  const [first = 0] = pids;
  const before = memoryGroupOf(readFileSync(`/proc/${first}/cgroup`, 'utf8'));
  for (const { root, limit, used, unlimited } of versions) {
    const group = join(root, `${prefix}${name}`);
    if (!existsSync(root)) continue;
    mkdirSync(group, { recursive: true });
    if (!existsSync(join(group, limit))) {
      rmdirSync(group);
      continue;
    }
    for (const pid of pids) writeFileSync(join(group, 'cgroup.procs'), String(pid));
    writeFileSync(join(group, limit), readFileSync(join(group, used), 'utf8').trim());
    return {
      end: async () => {
        writeFileSync(join(group, limit), unlimited);
        await empty(group, join(root, before));
      },
    };
  }
  throw new CodedError('internal', `no memory cgroups below ${dirname(versions[0].root)}`);
}

/**
 * Moves whoever is left and removes the group. One that forks while it is moved has its child in
 * the group, and who has just died belongs to it a little longer.
 */
async function empty(group: string, to: string): Promise<void> {
  const isGone = await until(() => {
    for (const pid of readFileSync(join(group, 'cgroup.procs'), 'utf8').match(/\d+/g) ?? []) {
      try {
        writeFileSync(join(to, 'cgroup.procs'), pid);
      } catch {
        // It has ended.
      }
    }
    try {
      rmdirSync(group);
      return true;
    } catch {
      return null;
    }
  }, emptyMsMax);
  if (isGone === null) throw new CodedError('internal', `${group} does not empty`);
}
