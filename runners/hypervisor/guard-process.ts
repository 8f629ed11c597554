/**
 * The guard and the VMM of a VM as processes: starting them, knowing whether they are still the
 * same ones, and ending them with proof. The guard (native/guard) is the VMM's parent and outlives
 * this process; it leaves `guard.json` while the VMM lives and `exit.json` once it has been reaped.
 */
import { spawn } from 'node:child_process';
import { open, readFile, rm } from 'node:fs/promises';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import type { Incarnation } from '../../contracts/identity.ts';
import { readChecked, readTail } from './durable-file.ts';
import type { VmIdentity, VmPaths } from './vm-directory.ts';

/** From exec of the guard to a VMM that listens; slow on a loaded machine with TCG. */
export const launchTimeoutMs = 20_000;
/** A killed VMM has to give back all its memory before it can be reaped. */
export const reapTimeoutMs = 10_000;
const pollEveryMs = 10;
/** Shown of the log when a start fails. */
const logTailBytes = 600;

const startTime = z.union([z.int().min(0), z.string().regex(/^\d+$/)]).transform(Number);
const guardShape = z.looseObject({
  version: z.literal(1),
  guardPid: z.int().min(2),
  vmmPid: z.int().min(2),
  /** Field 22 of /proc/PID/stat, clock ticks since boot: a pid alone may have a new owner. */
  guardStartTime: startTime,
  vmmStartTime: startTime,
  incarnation: z.string().optional(),
  bootId: z.string().optional(),
});
const exitShape = z.looseObject({
  version: z.literal(1), code: z.int().nullish(), signal: z.int().nullish(),
});

/** A guard and its VMM. */
export interface GuardedVmm {
  readonly guardPid: number;
  readonly vmmPid: number;
  readonly guardStartTime: number;
  readonly vmmStartTime: number;
  readonly incarnation: string | null;
  /** Boot of the host that the processes belong to; null when the guard did not say. */
  readonly bootId: string | null;
}

/** How a VMM ended. */
export interface VmmExit {
  readonly code: number | null;
  readonly signal: number | null;
  /**
   * Signal from outside (a system that goes down, a person) on which it ended with code 0, as it
   * does when its guest shuts down.
   */
  readonly toldBySignal?: number;
}

/** Begins the lines of one VMM in its log. */
const launchMark = 'novacron: a VMM is started';

/**
 * The signal that ended the last VMM of a log, null when none did. QEMU's own word for it, the same
 * since 2.0; its SHUTDOWN event says it too, but only to a runner that is there to hear it. Pure.
 */
export function signalInLog(log: string): number | null {
  const told = /terminating on signal (\d+)/.exec(log.slice(log.lastIndexOf(launchMark) + 1));
  return told === null ? null : Number(told[1]);
}

/** What the guard wrote; null when there is none. */
export async function readGuard(paths: VmPaths): Promise<GuardedVmm | null> {
  const read = await readChecked(paths.guardFile, guardShape);
  if (read === null) return null;
  return { ...read, incarnation: read.incarnation ?? null, bootId: read.bootId ?? null };
}

/** How the VMM ended; null while it has not been reaped. */
export async function readExit(paths: VmPaths): Promise<VmmExit | null> {
  const read = await readChecked(paths.exitFile, exitShape);
  if (read === null) return null;
  const exit = { code: read.code ?? null, signal: read.signal ?? null };
  const toldBySignal = exit.code !== 0 ? null
    : signalInLog(await readTail(paths.vmmLog, logTailBytes).catch(() => ''));
  return toldBySignal === null ? exit : { ...exit, toldBySignal };
}

/**
 * Start time of a process, clock ticks since boot; null when there is no such process or a zombie.
 */
export async function processStartTime(pid: number): Promise<number | null> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, 'latin1');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? null : Number(fields[19]);
  } catch {
    return null;
  }
}

/** Pids and start times of another boot name nobody. */
async function isOfThisBoot(guard: GuardedVmm): Promise<boolean> {
  if (guard.bootId === null) return true;
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim() === guard.bootId;
}

/** Whether the VMM of `guard` still is that process. */
export const isVmmAlive = async (guard: GuardedVmm): Promise<boolean> =>
  (await isOfThisBoot(guard)) && (await processStartTime(guard.vmmPid)) === guard.vmmStartTime;

/** Whether the guard still is that process. */
export const isGuardAlive = async (guard: GuardedVmm): Promise<boolean> =>
  (await isOfThisBoot(guard)) && (await processStartTime(guard.guardPid)) === guard.guardStartTime;

/** What a start needs besides the QEMU arguments. */
export interface LaunchOptions {
  readonly guardCommand: readonly string[];
  readonly paths: VmPaths;
  readonly identity: VmIdentity;
  readonly incarnation: Incarnation;
  readonly failover: 'none' | 'automatic';
  /** Group that the VMM has besides its own, for the accelerator's device; null for none. */
  readonly deviceGroup: number | null;
  readonly argv: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
}

/** What the guard is started with; its own `--help` explains each. Pure. */
export function guardArguments(
  { paths, identity, incarnation, failover, deviceGroup, argv }: Omit<
    LaunchOptions, 'guardCommand' | 'environment'>,
): readonly string[] {
  return [
    '--dir', paths.directory,
    '--uid', String(identity.uid),
    '--gid', String(identity.gid),
    '--incarnation', incarnation,
    ...(deviceGroup === null ? [] : ['--group', String(deviceGroup)]),
    ...(failover === 'automatic' ? ['--failover', 'automatic'] : []),
    '--', ...argv,
  ];
}

/**
 * Starts a VMM below a new guard and waits for its guard.json. Failure: vm/start-failed with the
 * end of the VMM's log. Whatever a former start left (guard.json, exit.json) goes first.
 */
export async function launchGuarded(options: LaunchOptions): Promise<GuardedVmm> {
  const { paths } = options;
  await Promise.all([
    rm(paths.guardFile, { force: true }),
    rm(paths.exitFile, { force: true }),
    rm(paths.guardSocket, { force: true }),
  ]);
  const [program = '', ...before] = options.guardCommand;
  const log = await open(paths.vmmLog, 'a', 0o600);
  try {
    await log.write(`${launchMark} (${options.incarnation})\n`);
    const child = spawn(
      program,
      [...before, ...guardArguments(options)],
      {
        stdio: ['ignore', log.fd, log.fd],
        detached: true,
        cwd: '/',
        env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', ...options.environment },
      },
    );
    const failed = new Promise<string | null>((resolve) => {
      child.once('error', (error) => resolve(error.message));
      // The guard daemonises: exit code 0 is the parent leaving its child behind.
      child.once('exit', (code) => {
        if (code !== 0) resolve(`guard exit ${code}`);
      });
    });
    child.unref();
    return await awaitGuardFile(options, failed);
  } finally {
    await log.close();
  }
}

async function awaitGuardFile(
  options: LaunchOptions,
  failed: Promise<string | null>,
): Promise<GuardedVmm> {
  const until = Date.now() + launchTimeoutMs;
  let why: string | null = null;
  void failed.then((reason) => {
    why = reason;
  });
  while (Date.now() < until && why === null) {
    const guard = await readGuard(options.paths);
    if (guard !== null) return guard;
    if ((await readExit(options.paths)) !== null) why = 'the VMM ended at once';
    await pause(pollEveryMs);
  }
  throw await startFailure(options.paths, why ?? `no guard.json in ${launchTimeoutMs} ms`);
}

/** A vm/start-failed that carries the last lines of the VMM's log. */
export async function startFailure(paths: VmPaths, why: string): Promise<CodedError> {
  const log = await readFile(paths.vmmLog, 'utf8').catch(() => '');
  return new CodedError('vm/start-failed', `${why}: ${log.slice(-logTailBytes).trim()}`);
}

/**
 * Kills the VMM and resolves only when it has been reaped: exit.json is there, or, should the guard
 * be dead as well, the process is gone from the process table. A pid that now belongs to another
 * process is never signalled. Failure: vmm/timeout.
 */
export async function killAndReap(paths: VmPaths): Promise<VmmExit | null> {
  const guard = await readGuard(paths);
  if (guard === null) return readExit(paths);
  if (await isVmmAlive(guard)) {
    signal(guard.vmmPid, 'SIGKILL');
    // A VMM that the lease guard has stopped takes SIGKILL all the same.
  }
  return awaitReaped(paths, guard, reapTimeoutMs);
}

/** Waits for the proof that the VMM is reaped. Failure: vmm/timeout. */
export async function awaitReaped(
  paths: VmPaths,
  guard: GuardedVmm,
  timeoutMs: number,
): Promise<VmmExit | null> {
  const until = Date.now() + timeoutMs;
  while (Date.now() < until) {
    const exit = await readExit(paths);
    if (exit !== null) return exit;
    if (!(await isGuardAlive(guard)) && !(await isVmmAlive(guard))) {
      return readExit(paths);
    }
    await pause(pollEveryMs);
  }
  throw new CodedError('vmm/timeout', `VMM ${guard.vmmPid} is not reaped after ${timeoutMs} ms`);
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
