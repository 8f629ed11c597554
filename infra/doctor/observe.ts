/** The probes of `novacron doctor`: each tries the real thing, within its time, and cleans up. */
import { execFile } from 'node:child_process';
import {
  closeSync, existsSync, fdatasyncSync, mkdtempSync, openSync, readFileSync, readdirSync, rmSync,
  statfsSync, writeSync,
} from 'node:fs';
import { freemem, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { probeAccelerator, proveEmulation } from './accelerator.ts';
import { runnerPrograms, type KernelProbe, type Observations } from './findings.ts';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const programMsMax = 10_000;
const syncCount = 50;

async function outputOf(command: string, words: readonly string[]): Promise<string | null> {
  try {
    return (await run(command, [...words], { timeout: programMsMax })).stdout;
  } catch {
    return null;
  }
}

const readText = (path: string): string => (existsSync(path) ? readFileSync(path, 'utf8').trim() : '');

async function probeKernel(): Promise<KernelProbe | null> {
  const text = await outputOf(join(root, 'native/target/release/novacron-probe'), []);
  return text === null ? null : JSON.parse(text) as KernelProbe;
}

/** Versioned machine types, newest first; aliases are left out because they differ by host. */
export function parseMachineTypes(text: string): string[] {
  return [...text.matchAll(/^(pc-(?:i440fx|q35)-\d+\.\d+)\s/gm)]
    .flatMap(([, name]) => (name === undefined ? [] : [name]))
    .toSorted((a, b) => b.localeCompare(a, 'en', { numeric: true }));
}

/** A set with a timeout in the bridge family, taken in a network namespace of its own. */
async function tryBridgeSet(): Promise<string | null> {
  const rules = 'add table bridge novacron_probe; '
    + 'add set bridge novacron_probe gate { type ether_addr . ifname; flags timeout; }; '
    + 'add element bridge novacron_probe gate { 02:00:00:00:00:01 . "probe0" timeout 1s }';
  try {
    await run('unshare', ['--net', 'nft', rules], { timeout: programMsMax });
    return null;
  } catch (error) {
    return error instanceof Error ? error.message.split('\n')[1] ?? error.message : String(error);
  }
}

/** Median of 50 durable writes of 4 KiB where the project's state lives. */
function measureSync(): number | null {
  const folder = mkdtempSync(join(existsSync('/var/lib') ? '/var/lib' : root, 'novacron-doctor-'));
  const file = openSync(join(folder, 'sync'), 'w');
  try {
    const page = Buffer.alloc(4096, 1);
    const times = Array.from({ length: syncCount }, () => {
      const started = performance.now();
      writeSync(file, page);
      fdatasyncSync(file);
      return performance.now() - started;
    });
    return times.toSorted((a, b) => a - b)[syncCount >> 1] ?? null;
  } finally {
    closeSync(file);
    rmSync(folder, { recursive: true, force: true });
  }
}

const tryOrNull = <T>(measure: () => T): T | null => {
  try {
    return measure();
  } catch {
    return null;
  }
};

function secondQemuVersion(): string | null {
  const text = readText(join(root, '.cache/qemu-10/qemu.json'));
  return text === '' ? null : (JSON.parse(text) as { version: string }).version;
}

const isOnPath = (program: string): boolean =>
  (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, program)));

/** Runs all probes; `fresh` does not take the accelerator from the cache. At most about 20 s. */
export async function observeHost({ fresh }: { readonly fresh: boolean }): Promise<Observations> {
  const accelerator = await probeAccelerator({ fresh });
  const versionText = await outputOf('qemu-system-x86_64', ['--version']);
  const machines = await outputOf('qemu-system-x86_64', ['-machine', 'help']);
  return {
    kernelRelease: release(),
    accelerator,
    emulationProblem: accelerator.accelerator === 'kvm' ? null : await proveEmulation(),
    kernel: await probeKernel(),
    qemuVersion: /version (\d+\.\d+(?:\.\d+)?)/.exec(versionText ?? '')?.[1] ?? null,
    machineTypes: parseMachineTypes(machines ?? ''),
    secondQemuVersion: secondQemuVersion(),
    congestionControls: readText('/proc/sys/net/ipv4/tcp_available_congestion_control').split(' '),
    rdmaDevices: tryOrNull(() => readdirSync('/sys/class/infiniband')) ?? [],
    hasCgroup2: existsSync('/sys/fs/cgroup/cgroup.controllers'),
    bridgeSetProblem: await tryBridgeSet(),
    programsMissing: Object.keys(runnerPrograms).filter((program) => !isOnPath(program)),
    isRoot: process.getuid?.() === 0,
    syncMsP50: tryOrNull(measureSync),
    memoryBytes: totalmem(),
    memoryFreeBytes: freemem(),
    diskFreeBytes: tryOrNull(() => {
      const disk = statfsSync(root);
      return disk.bavail * disk.bsize;
    }),
    clockSource: readText('/sys/devices/system/clocksource/clocksource0/current_clocksource') || 'unknown',
  };
}
