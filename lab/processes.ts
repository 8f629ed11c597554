/**
 * Starts, watches and ends the processes of a lab. Each runs in the namespace of its machine, logs
 * to a file of its own, and is known by pid and start time, so that it can be found again by
 * another process of the lab. What the processes do is none of this file's business.
 */
import { spawn } from 'node:child_process';
import {
  closeSync, existsSync, openSync, readFileSync, readdirSync, readlinkSync, statSync,
} from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../contracts/failures.ts';
import { isAlive, markOf } from './state.ts';
import type { ProcessMark } from './state.ts';

/** Environment variable by which a lab's processes are found when nothing else is left of it. */
export const labVariable = 'NOVACRON_LAB';
/** Longest wait for `ready`; a Temporal worker bundles its workflows in 4 s on a quiet machine. */
const readyMsMax = 60_000;
/** How long a process may take to end by itself before it is killed. */
const stopMsMax = 10_000;
const pollEveryMs = 20;

/** How to start one process. */
export interface ProcessSpec {
  /** Unique in the lab; names the log file. */
  readonly name: string;
  /** Network namespace; null for the machine's own. */
  readonly namespace: string | null;
  readonly command: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly directory?: string;
  /** `line`: a JSON log line with msg "ready"; `none`: running is enough. */
  readonly ready: 'line' | 'none';
}

/** Where a process logs and to which lab it belongs. */
export interface ProcessPlace {
  readonly labId: string;
  readonly logPath: string;
}

/** The command that runs `command` inside a network namespace, as the same process. */
export function commandIn(namespace: string | null, command: readonly string[]): string[] {
  return namespace === null
    ? [...command] : ['nsenter', `--net=/run/netns/${namespace}`, '--', ...command];
}

/** First JSON line with msg "ready" in a log text; null while there is none. Pure. */
export function findReadyLine(log: string): Record<string, unknown> | null {
  for (const line of log.split('\n')) {
    if (!line.includes('"ready"')) continue;
    try {
      const record = JSON.parse(line) as Record<string, unknown>;
      if (record['msg'] === 'ready') return record;
    } catch {
      // A line cut off in the middle of being written: it is complete at the next look.
    }
  }
  return null;
}

/** One process of a lab. */
export class LabProcess {
  readonly spec: ProcessSpec;
  readonly logPath: string;
  #mark: ProcessMark;
  #logOffsetBytes: number;

  private constructor(
    spec: ProcessSpec, place: ProcessPlace, mark: ProcessMark, logOffsetBytes: number,
  ) {
    this.spec = spec;
    this.logPath = place.logPath;
    this.#mark = mark;
    this.#logOffsetBytes = logOffsetBytes;
  }

  /** Starts the process; it outlives us. Does not wait for it to be ready. */
  static async start(spec: ProcessSpec, place: ProcessPlace): Promise<LabProcess> {
    const logOffsetBytes = existsSync(place.logPath) ? statSync(place.logPath).size : 0;
    const log = openSync(place.logPath, 'a', 0o640);
    try {
      const [program = '', ...args] = commandIn(spec.namespace, spec.command);
      const child = spawn(program, args, {
        detached: true,
        stdio: ['ignore', log, log],
        env: { ...process.env, ...spec.environment, [labVariable]: place.labId },
        ...(spec.directory === undefined ? {} : { cwd: spec.directory }),
      });
      await new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve);
        child.once('error', (cause) => {
          reject(new CodedError('internal', `${spec.name} could not be started`, cause));
        });
      });
      child.unref();
      return new LabProcess(spec, place, markOf(spec.name, child.pid ?? 0), logOffsetBytes);
    } finally {
      closeSync(log);
    }
  }

  /** A process that another process of the lab has started. */
  static adopt(spec: ProcessSpec, place: ProcessPlace, mark: ProcessMark): LabProcess {
    return new LabProcess(spec, place, mark, 0);
  }

  get pid(): number {
    return this.#mark.pid;
  }

  get mark(): ProcessMark {
    return this.#mark;
  }

  isRunning(): boolean {
    return isAlive(this.#mark);
  }

  /** What it has logged since it was started, at most the last `lengthMax` characters. */
  log(lengthMax = 1_000_000): string {
    if (!existsSync(this.logPath)) return '';
    return readFileSync(this.logPath).subarray(this.#logOffsetBytes).toString('utf8')
      .slice(-lengthMax);
  }

  /**
   * Waits until it is ready and answers its ready line ({} with `ready: 'none'`).
   * Throws CodedError `internal` with its last words when it ends before, or takes over 60 s.
   */
  async whenReady(): Promise<Record<string, unknown>> {
    if (this.spec.ready === 'none') return {};
    for (const end = performance.now() + readyMsMax; performance.now() < end;) {
      const line = findReadyLine(this.log());
      if (line !== null) return line;
      if (!this.isRunning()) {
        throw new CodedError('internal', `${this.spec.name} ended before it was ready: `
          + `${this.log(1500)} (${this.logPath})`);
      }
      await sleep(pollEveryMs);
    }
    throw new CodedError('internal',
      `${this.spec.name} was not ready within ${readyMsMax} ms: see ${this.logPath}`);
  }

  /** Sends a signal; false when the process is gone. */
  signal(signal: NodeJS.Signals): boolean {
    return sendSignal(this.#mark, signal);
  }

  /** SIGSTOP: the process stands still until `resume`, as on a stalled machine. */
  pause(): boolean {
    return this.signal('SIGSTOP');
  }

  resume(): boolean {
    return this.signal('SIGCONT');
  }

  /** kill -9, and waits until it is gone. */
  async kill(): Promise<void> {
    this.signal('SIGKILL');
    await waitUntilGone([this.#mark], stopMsMax);
  }

  /** Asks it to end (SIGTERM), kills it after 10 s. */
  async stop(): Promise<void> {
    await endProcesses([this.#mark], stopMsMax);
  }
}

/** Sends a signal to the very process of the mark; false when it is gone. */
export function sendSignal(mark: ProcessMark, signal: NodeJS.Signals): boolean {
  if (mark.pid <= 1 || !isAlive(mark)) return false;
  try {
    process.kill(mark.pid, signal);
    return true;
  } catch {
    return false;
  }
}

async function waitUntilGone(marks: readonly ProcessMark[], timeoutMs: number): Promise<boolean> {
  for (const end = performance.now() + timeoutMs; performance.now() < end;) {
    if (!marks.some(isAlive)) return true;
    await sleep(pollEveryMs);
  }
  return !marks.some(isAlive);
}

/** SIGTERM to all, SIGKILL to those that are left after `graceMs`. */
export async function endProcesses(
  marks: readonly ProcessMark[], graceMs: number,
): Promise<void> {
  for (const mark of marks) {
    sendSignal(mark, 'SIGCONT');
    sendSignal(mark, 'SIGTERM');
  }
  if (await waitUntilGone(marks, graceMs)) return;
  for (const mark of marks) sendSignal(mark, 'SIGKILL');
  await waitUntilGone(marks, stopMsMax);
}

/** Every process of this machine that carries a lab's variable, whoever started it. */
export function processesOfLab(labId: string): ProcessMark[] {
  const wanted = `${labVariable}=${labId}`;
  const marks: ProcessMark[] = [];
  for (const entry of readdirSync('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    try {
      if (!readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').includes(wanted)) continue;
      marks.push(markOf(readlinkSync(`/proc/${pid}/exe`).split('/').at(-1) ?? entry, pid));
    } catch {
      // It ended between listing and reading.
    }
  }
  return marks;
}

/** CPU seconds that a process has used so far, its vCPU threads counted apart. */
export interface CpuSeconds {
  /** Everything but the threads that run the guest. */
  readonly hostSeconds: number;
  /** Threads named `CPU n/…`, as QEMU calls them with debug-threads=on. */
  readonly guestSeconds: number;
}

/** Ticks of /proc/…/stat; Linux's user interface is fixed to 100 on every architecture we know. */
const ticksPerSecond = 100;

/** Reads the CPU time of a process from /proc; zeros when it is gone. */
export function cpuSecondsOf(pid: number): CpuSeconds {
  let hostTicks = 0;
  let guestTicks = 0;
  try {
    const total = ticksOf(readFileSync(`/proc/${pid}/stat`, 'utf8')).ticks;
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const { name, ticks } = ticksOf(readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8'));
      if (/^CPU \d+\//.test(name)) guestTicks += ticks;
    }
    hostTicks = Math.max(0, total - guestTicks);
  } catch {
    // Gone: what it had used is unknown, the caller reads it before it ends.
  }
  return { hostSeconds: hostTicks / ticksPerSecond, guestSeconds: guestTicks / ticksPerSecond };
}

function ticksOf(stat: string): { name: string; ticks: number } {
  const end = stat.lastIndexOf(')');
  const fields = stat.slice(end + 2).split(' ');
  return {
    name: stat.slice(stat.indexOf('(') + 1, end),
    ticks: Number(fields[11]) + Number(fields[12]),
  };
}
