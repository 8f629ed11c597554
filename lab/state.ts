/**
 * What a lab has made, written down before it is made, so that `down` finds everything even after
 * a kill -9. One JSON file a lab under /run/novacron-lab/labs; a boot empties /run as it empties
 * the kernel's namespaces.
 */
import {
  existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { labIdPattern } from './network/plan.ts';

/** Root of everything that labs keep while they live; short, because of socket path limits. */
export const labsRoot = '/run/novacron-lab';
/** Where their records are. */
export const statesDirectory = join(labsRoot, 'labs');

/** A process by pid and start time, so that a reused pid is never taken for it. */
export const processMark = z.strictObject({
  name: z.string(),
  pid: z.int(),
  /** Field 22 of /proc/PID/stat, clock ticks since boot. */
  startTicks: z.int(),
});
export type ProcessMark = z.infer<typeof processMark>;

/** A lab's record. */
export const labState = z.strictObject({
  version: z.literal(1),
  id: z.string().regex(labIdPattern),
  /** The process that made it; a lab without `kept` dies with it. */
  owner: processMark,
  /** True: stays after its maker has ended (the demo), until `down`. */
  kept: z.boolean(),
  namespaces: z.array(z.string()),
  directories: z.array(z.string()),
  files: z.array(z.string()),
  processes: z.array(processMark),
  /** Free for who composes the lab: URLs, ports, guest; read back by a warm start. */
  notes: z.record(z.string(), z.unknown()),
});
export type LabState = z.infer<typeof labState>;

const pathOf = (id: string): string => join(statesDirectory, `${id}.json`);

/** Writes a lab's record in one step (temporary file, rename). */
export function writeLabState(state: LabState): void {
  mkdirSync(statesDirectory, { recursive: true, mode: 0o755 });
  const path = pathOf(state.id);
  writeFileSync(`${path}.new`, `${JSON.stringify(state, null, 1)}\n`);
  renameSync(`${path}.new`, path);
}

/** Reads a lab's record; null when there is none or it can't be read. */
export function readLabState(id: string): LabState | null {
  try {
    return labState.parse(JSON.parse(readFileSync(pathOf(id), 'utf8')));
  } catch {
    return null;
  }
}

/** Forgets a lab; call it last. */
export function removeLabState(id: string): void {
  rmSync(pathOf(id), { force: true });
}

/**
 * A record that is being written is renamed in a moment; one this old belongs to a killed maker.
 */
const unfinishedMsMax = 10_000;

/** Removes records whose maker was killed while it wrote them: nothing was made yet. */
export function dropUnfinishedStates(): void {
  if (!existsSync(statesDirectory)) return;
  for (const name of readdirSync(statesDirectory).filter((text) => text.endsWith('.new'))) {
    const path = join(statesDirectory, name);
    const about = statSync(path, { throwIfNoEntry: false });
    if (about !== undefined && Date.now() - about.mtimeMs > unfinishedMsMax) {
      rmSync(path, { force: true });
    }
  }
}

/** Ids of all labs on record. */
export function listLabs(): string[] {
  try {
    return readdirSync(statesDirectory)
      .filter((name) => name.endsWith('.json'))
      .map((name) => name.slice(0, -'.json'.length))
      .filter((id) => labIdPattern.test(id));
  } catch {
    return [];
  }
}

/** Start time of a process in clock ticks since boot; null when it is gone or a zombie. */
export function startTicksOf(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? null : Number(fields[19]);
  } catch {
    return null;
  }
}

/** True while the very process of the mark runs. */
export const isAlive = (mark: ProcessMark): boolean => startTicksOf(mark.pid) === mark.startTicks;

/** The mark of a running process. */
export const markOf = (name: string, pid: number): ProcessMark => ({
  name, pid, startTicks: startTicksOf(pid) ?? 0,
});
