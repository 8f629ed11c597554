/**
 * CPU time for the few threads that a move waits for, against the vCPUs that never sleep. Two
 * scales count: nice inside a scheduling group, and the group's own where the kernel groups
 * processes by session (autogroup: nice alone then says nothing between two sessions). Decides the
 * levels; who is raised when is left to runner and hand-over. What the host does not allow is left
 * out and told once: priority is a matter of speed, never of correctness.
 */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { getPriority, setPriority } from 'node:os';

/** About nine times the share of an ordinary thread, and far from the kernel's own threads. */
export const raisedNice = -10;
/**
 * A runner's session while it copies memory: four times the share of a guest. With less a move of a
 * busy guest takes 1.6 times as long, with -10 its clients wait longer than for the blackout
 * (docs/decisions/0004).
 */
export const copyNice = -6;
const ordinaryNice = 0;

const autogroupPath = (pid: number | 'self'): string => `/proc/${pid}/autogroup`;

/** The nice level in a line of /proc/PID/autogroup, `/autogroup-26 nice 0`. Null: no such group. */
export function autogroupNice(line: string): number | null {
  const level = /\snice\s(-?\d+)\s*$/.exec(line)?.[1];
  return level === undefined ? null : Number(level);
}

/** Sets the level of a process's session; false where the kernel has no such groups. */
async function setAutogroup(pid: number | 'self', nice: number): Promise<boolean> {
  const line = await readFile(autogroupPath(pid), 'utf8').catch(() => '');
  const level = autogroupNice(line);
  if (level === null) return false;
  if (level !== nice) await writeFile(autogroupPath(pid), String(nice));
  return true;
}

/**
 * Raises this process: its threads and every thread and process that it makes from now on; with
 * `session` against other sessions as well. Answers why not, null when it is raised.
 */
export async function raiseThisProcess(
  options: { readonly session: boolean },
): Promise<string | null> {
  try {
    for (const thread of await readdir('/proc/self/task')) setPriority(Number(thread), raisedNice);
    if (options.session) await setAutogroup('self', raisedNice);
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** What a move does, most urgent first, and the level of this process's session meanwhile. */
const sessionNice = { blackout: raisedNice, copy: copyNice } as const;
export type MoveWork = keyof typeof sessionNice;

/** Of each how many are under way, and the last change of the session's level. */
const underWay: Record<MoveWork, number> = { blackout: 0, copy: 0 };
let level: number = ordinaryNice;
let changed: Promise<unknown> = Promise.resolve();

function follow(): void {
  const wanted = underWay.blackout > 0 ? sessionNice.blackout
    : underWay.copy > 0 ? sessionNice.copy : ordinaryNice;
  if (wanted === level) return;
  level = wanted;
  // One after the other: a level that is overtaken would stay for good.
  changed = changed.then(() => setAutogroup('self', wanted)).catch(() => undefined);
}

/** Raises this process's session against others until `over` is called. */
export function raiseSession(work: MoveWork): { readonly over: () => void } {
  underWay[work] += 1;
  follow();
  let isOver = false;
  return {
    over: () => {
      if (isOver) return;
      isOver = true;
      underWay[work] -= 1;
      follow();
    },
  };
}

/** A process that was just started inherits ours; this one is not in a hurry. Never fails. */
export function takeOrdinaryPriority(pid: number): void {
  try {
    setPriority(pid, ordinaryNice);
  } catch {
    // It has ended already.
  }
}

/**
 * Raises a VMM's main thread and what that thread makes from now on (the migration thread); its
 * vCPUs stay as they are. `session` raises the whole VMM against other sessions, so only while
 * no vCPU runs. Never fails.
 */
export async function raiseVmm(
  pid: number, options: { readonly session: boolean },
): Promise<void> {
  try {
    setPriority(pid, raisedNice);
    if (options.session) await setAutogroup(pid, raisedNice);
  } catch {
    // Not allowed here, or the VMM is gone, which others notice.
  }
}

/** Takes a VMM back to the level that it was started with, every thread of it. Never fails. */
export async function calmVmm(pid: number): Promise<void> {
  try {
    await setAutogroup(pid, ordinaryNice);
    for (const thread of await readdir(`/proc/${pid}/task`)) {
      const tid = Number(thread);
      if (getPriority(tid) < ordinaryNice) setPriority(tid, ordinaryNice);
    }
  } catch {
    // The VMM, or one thread of it, is gone: nothing is left to calm, or the next call does it.
  }
}
