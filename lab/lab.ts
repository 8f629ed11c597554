/**
 * A lab: one small data centre on this machine. Owns the order of things: record, then make;
 * processes away, then namespaces, then directories, then the record. What runs in it is composed
 * elsewhere (compose.ts, bench/, tests).
 */
import { existsSync, mkdirSync, readFileSync, rmSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { CodedError } from '../contracts/failures.ts';
import { runCommand } from './command.ts';
import { LabProcess, endProcesses, processesOfLab } from './processes.ts';
import type { ProcessSpec } from './processes.ts';
import { lowerNetwork, namespaceExists, processesIn, raiseNetwork } from './network/network.ts';
import { newLabId, planNetwork } from './network/plan.ts';
import type { LabHost, NetworkPlan } from './network/plan.ts';
import {
  dropUnfinishedStates, isAlive, labsRoot, listLabs, markOf, readLabState, removeLabState,
  statesDirectory, writeLabState,
} from './state.ts';
import type { LabState } from './state.ts';

/** How long processes may take to end by themselves when a lab goes. */
const lowerGraceMs = 3_000;

/** Where a lab keeps its things. */
export interface LabDirectories {
  /** Sockets: under /run, short paths. */
  readonly runtime: string;
  /** Configurations, logs, disks, certificates; readable for the VMMs' own users. */
  readonly data: string;
  /** Guest memory: a tmpfs. */
  readonly memory: string;
}

/** Directories of a lab. Pure. */
export const labDirectories = (id: string): LabDirectories => ({
  runtime: join(labsRoot, id),
  data: join('/var/lib/novacron-lab', id),
  memory: join('/dev/shm/novacron-lab', id),
});

/** One running lab. */
export class Lab {
  readonly plan: NetworkPlan;
  readonly directories: LabDirectories;
  #state: LabState;
  /** True once it is taken down: nothing is started any more. */
  #isGoing = false;
  /** Those that this process has started, by name. */
  readonly #started = new Map<string, LabProcess>();

  private constructor(state: LabState, plan: NetworkPlan) {
    this.#state = state;
    this.plan = plan;
    this.directories = labDirectories(state.id);
  }

  get id(): string {
    return this.#state.id;
  }

  get notes(): Readonly<Record<string, unknown>> {
    return this.#state.notes;
  }

  /**
   * Makes network and directories of a new lab. `kept` labs stay when their maker ends. Dead labs
   * of earlier runs are swept first.
   */
  static async raise(options: {
    readonly hostCount: number; readonly kept?: boolean; readonly id?: string;
    readonly notes?: Readonly<Record<string, unknown>>;
    /** Directories that go with the lab, beside its own; made by who asks. */
    readonly directories?: readonly string[];
  }): Promise<Lab> {
    await sweepDeadLabs();
    const id = options.id ?? newLabId();
    if (readLabState(id) !== null) throw new CodedError('input/invalid', `lab ${id} exists`);
    const plan = planNetwork({ id, hostCount: options.hostCount });
    const directories = labDirectories(id);
    const lab = new Lab({
      version: 1,
      id,
      owner: markOf('maker', process.pid),
      kept: options.kept ?? false,
      namespaces: [...plan.namespaces],
      directories: [...Object.values(directories), ...options.directories ?? []],
      files: [],
      processes: [],
      notes: { ...options.notes, hostCount: options.hostCount },
    }, plan);
    writeLabState(lab.#state);
    for (const directory of Object.values(directories)) {
      mkdirSync(directory, { recursive: true, mode: 0o755 });
    }
    mkdirSync(join(directories.data, 'logs'), { recursive: true });
    await raiseNetwork(plan);
    return lab;
  }

  /** A lab that is on record and whose network stands; null otherwise. */
  static open(id: string): Lab | null {
    const state = readLabState(id);
    const hostCount = state?.notes['hostCount'];
    if (state === null || typeof hostCount !== 'number') return null;
    const plan = planNetwork({ id, hostCount });
    return plan.namespaces.every(namespaceExists) ? new Lab(state, plan) : null;
  }

  /** Host by its number, from 1. */
  host(number: number): LabHost {
    const host = this.plan.hosts[number - 1];
    if (host === undefined) throw new RangeError(`lab ${this.id} has no host ${number}`);
    return host;
  }

  /** Keeps a value in the lab's record for who opens it later. */
  note(key: string, value: unknown): void {
    this.#write({ notes: { ...this.#state.notes, [key]: value } });
  }

  /** Lets a lab outlive its maker (or not). */
  keep(kept: boolean): void {
    this.#write({ kept });
  }

  /** Starts a process of the lab and waits until it is ready. */
  async start(spec: ProcessSpec): Promise<LabProcess> {
    this.#refuseWhenGoing();
    const started = await LabProcess.start(spec, this.#place(spec.name));
    if (this.#isGoing) await started.kill();
    this.#refuseWhenGoing();
    this.#write({
      processes: [
        ...this.#state.processes.filter((mark) => mark.name !== spec.name && isAlive(mark)),
        started.mark,
      ],
    });
    this.#started.set(spec.name, started);
    await started.whenReady();
    return started;
  }

  /** A process that this object has started last under a name. Failure: internal. */
  started(name: string): LabProcess {
    const process = this.#started.get(name);
    if (process === undefined) throw new CodedError('internal', `${name} was not started here`);
    return process;
  }

  /** All of those that still run. */
  running(): LabProcess[] {
    return [...this.#started.values()].filter((process) => process.isRunning());
  }

  /** A running process by its name; null when it is not there. */
  process(spec: ProcessSpec): LabProcess | null {
    const mark = this.#state.processes.find((known) => known.name === spec.name);
    if (mark === undefined || !isAlive(mark)) return null;
    return LabProcess.adopt(spec, this.#place(spec.name), mark);
  }

  /** True while the process of that name runs. */
  isRunning(name: string): boolean {
    return this.#state.processes.some((mark) => mark.name === name && isAlive(mark));
  }

  /** Log file of a process. */
  logPath(name: string): string {
    return join(this.directories.data, 'logs', `${name}.log`);
  }

  /** Removes everything that the lab has made. */
  async lower(): Promise<void> {
    this.#isGoing = true;
    await lowerLab(this.id);
  }

  #refuseWhenGoing(): void {
    if (this.#isGoing) throw new CodedError('internal', `lab ${this.id} is being taken down`);
  }

  #place(name: string): { labId: string; logPath: string } {
    return { labId: this.id, logPath: this.logPath(name) };
  }

  #write(change: Partial<LabState>): void {
    this.#state = { ...this.#state, ...change };
    if (this.#isGoing) return;
    writeLabState(this.#state);
  }
}

/** File systems that were mounted inside a lab, the innermost first. */
async function unmountBelow(directories: readonly string[]): Promise<void> {
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => directories.some((directory) => path.startsWith(`${directory}/`)));
  for (const path of mounts.toReversed()) await runCommand(['umount', path]);
}

/** Removes everything that a lab has made, from its record alone; repeats do nothing. */
export async function lowerLab(id: string): Promise<void> {
  const state = readLabState(id);
  const namespaces = state?.namespaces ?? [];
  const marksNow = async (): Promise<LabState['processes']> => {
    const inside = (await Promise.all(namespaces.map(processesIn))).flat();
    const found = [
      ...(state?.processes ?? []).filter(isAlive),
      ...inside.map((pid) => markOf('inside', pid)),
      ...processesOfLab(id),
    ];
    const own = process.pid;
    return [...new Map(found.map((mark) => [mark.pid, mark])).values()]
      .filter((mark) => mark.pid !== own);
  };
  await endProcesses(await marksNow(), lowerGraceMs);
  // A process may have started another one while it was ending.
  await endProcesses(await marksNow(), 0);
  await lowerNetwork(namespaces);
  await unmountBelow(state?.directories ?? []);
  for (const path of [...(state?.directories ?? []), ...(state?.files ?? [])]) {
    rmSync(path, { recursive: true, force: true });
  }
  removeLabState(id);
}

/** Removes the folders that all labs share, where the last lab has gone. */
export function removeEmptyRoots(): void {
  dropUnfinishedStates();
  const { data, memory } = labDirectories('');
  for (const root of [statesDirectory, labsRoot, data, memory]) {
    try {
      rmdirSync(root);
    } catch {
      // Another lab is in it, or it is not there.
    }
  }
}

/** True when nobody will take this lab down any more: made by a process that is gone, not kept. */
export function isDeadLab(state: LabState): boolean {
  const networkStands = state.namespaces.some((name) => existsSync(`/run/netns/${name}`));
  if (state.kept) return !networkStands && !state.processes.some(isAlive);
  return !isAlive(state.owner);
}

/** Takes down the labs whose makers died; answers their ids. */
export async function sweepDeadLabs(): Promise<string[]> {
  const swept: string[] = [];
  for (const id of listLabs()) {
    const state = readLabState(id);
    if (state === null || !isDeadLab(state)) continue;
    await lowerLab(id);
    swept.push(id);
  }
  return swept;
}
