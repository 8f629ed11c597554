/**
 * Measures what preflight wants to know about this host right now. Changes nothing; what follows
 * from the figures is preflight.ts.
 */
import { access, constants, readFile, statfs } from 'node:fs/promises';
import { release } from 'node:os';
import { CodedError } from '../../contracts/failures.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { RunningVm } from '../../contracts/runner.ts';
import { askVolumeGate } from '../gates/volume-gate.ts';
import { runProgram } from '../hypervisor/run-program.ts';
import type { HostContext } from './host-context.ts';
import { plainAddress, type TargetObservations } from './preflight.ts';

/** First Linux with PAGEMAP_SCAN. */
const kernelMin = [6, 7] as const;
/** Two probes a second apart find an owner of the address on a local segment. */
const arpProbeCount = 2;

/** Why dirty tracking can't work on this kernel, null when it can. */
export async function kernelObstacle(): Promise<string | null> {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  if (major < kernelMin[0] || (major === kernelMin[0] && minor < kernelMin[1])) {
    return `Linux ${release()} has no PAGEMAP_SCAN, 6.7 or newer has`;
  }
  try {
    await access('/dev/userfaultfd', constants.R_OK | constants.W_OK);
    return null;
  } catch {
    return '/dev/userfaultfd can not be opened (CONFIG_USERFAULTFD, Linux 6.1 or newer)';
  }
}

async function memoryFreeBytes(memoryDirectory: string): Promise<number> {
  const text = await readFile('/proc/meminfo', 'utf8');
  const available = Number(/^MemAvailable:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * 1024;
  const tmpfs = await statfs(memoryDirectory);
  return Math.min(available, tmpfs.bavail * tmpfs.bsize);
}

/**
 * Whether another machine answers for the address on the bridge's segment. The VM itself answers
 * with its own MAC and does not count.
 */
async function isAnswered(
  options: { readonly bridge: string; readonly address: string; readonly mac: string },
): Promise<boolean> {
  const { bridge, address, mac } = options;
  const text = await runProgram(
    ['busybox', 'arping', '-D', '-c', String(arpProbeCount), '-w', String(arpProbeCount),
      '-I', bridge, address],
    { failure: 'host/unreachable', timeoutMs: 10_000, answerCodes: [1] },
  );
  const answers = [...text.matchAll(/\[([0-9a-fA-F:]{11,17})\]/g)].map((match) =>
    (match[1] ?? '').toLowerCase().split(':').map((part) => part.padStart(2, '0')).join(':'));
  return answers.some((answer) => answer !== mac);
}

/** Asks each volume's gate where it stands: it serves the VM, and is not above its epoch. */
async function volumeObstacles(
  { config, revoked }: HostContext, running: RunningVm, entry: VmEntry | null,
): Promise<readonly string[]> {
  const found: string[] = [];
  for (const { shared, name } of running.disks) {
    if (shared === undefined) continue;
    if (config.volumePath === null) {
      found.push(`disk ${name}: no volumePath in the configuration`);
      continue;
    }
    try {
      const gate = await askVolumeGate(
        { wish: 'look', vm: running.name, volume: shared, epoch: 0 },
        { material: config.tls, revoked },
      );
      if (entry !== null && gate > entry.epoch) {
        found.push(`disk ${name}: its gate stands at ${gate}, the ledger at ${entry.epoch}`);
      }
    } catch (error) {
      found.push(`disk ${name}: ${error instanceof CodedError ? error.detail : String(error)}`);
    }
  }
  return found;
}

/** Everything that can be measured without touching the VM. */
export async function observeTarget(
  context: HostContext, running: RunningVm, entry: VmEntry | null,
): Promise<TargetObservations> {
  const { config, hypervisor, host } = context;
  const disk = await statfs(config.stateDir);
  const look = await hypervisor.look(running.name);
  const isOurs = entry?.owner === host;
  const addressesAnswered: string[] = [];
  for (const { address, macAddress } of running.nics) {
    const plain = plainAddress(address);
    if (config.vmBridge === null || plain === null) continue;
    const probe = { bridge: config.vmBridge, address: plain, mac: macAddress };
    if (await isAnswered(probe)) addressesAnswered.push(plain);
  }
  return {
    memoryFreeBytes: await memoryFreeBytes(config.memoryDir),
    diskFreeBytes: disk.bavail * disk.bsize,
    namesTaken: isOurs || look.runState === 'running' ? [hypervisor.paths(running.name).directory] : [],
    addressesAnswered,
    kernelObstacle: await kernelObstacle(),
    volumeObstacles: await volumeObstacles(context, running, entry),
  };
}
