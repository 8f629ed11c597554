/**
 * Decides, before anything moves, whether a target can take a VM exactly as it runs. Pure: the
 * facts are gathered by the runner of the target; what is refused and why is decided here.
 */
import { isIPv4 } from 'node:net';
import type { FailureCode } from '../../contracts/failures.ts';
import { limits } from '../../contracts/limits.ts';
import type { HostFacts, RunningVm } from '../../contracts/runner.ts';
import { formatBytes } from '../../contracts/units.ts';

/** What the target measured for this check, beside what it told when it joined. */
export interface TargetObservations {
  readonly memoryFreeBytes: number;
  readonly diskFreeBytes: number;
  /** Names that something on the target uses already: VM directories, memory files, taps. */
  readonly namesTaken: readonly string[];
  /** Addresses of the VM that another machine on the target's segment answered for. */
  readonly addressesAnswered: readonly string[];
  /** Null when dirty tracking and userfaultfd work there, else what is missing. */
  readonly kernelObstacle: string | null;
  /** Shared volumes of the VM that the target can't use, each with the reason. */
  readonly volumeObstacles: readonly string[];
}

export interface PreflightRefusal {
  readonly code: FailureCode;
  readonly detail: string;
}

/** "7.2.22 (Debian …)" → [7, 2]. */
function versionOf(text: string): readonly [number, number] {
  const match = /(\d+)\.(\d+)/.exec(text);
  return [Number(match?.[1] ?? 0), Number(match?.[2] ?? 0)];
}

function machineVersion(machineType: string): readonly [number, number] {
  return versionOf(machineType.slice(machineType.lastIndexOf('-')));
}

const isOlder = (a: readonly [number, number], b: readonly [number, number]): boolean =>
  a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);

type Check = (
  vm: RunningVm, target: HostFacts, seen: TargetObservations,
) => PreflightRefusal | null;

const checks: readonly Check[] = [
  (vm) =>
    vm.exactnessObstacles.length === 0
      ? null
      : { code: 'preflight/layout', detail: vm.exactnessObstacles.join('; ') },
  (_vm, _target, seen) =>
    seen.kernelObstacle === null
      ? null
      : { code: 'preflight/kernel', detail: `on the target: ${seen.kernelObstacle}` },
  (vm, target) =>
    isOlder(versionOf(target.qemuVersion), machineVersion(vm.machineType))
      ? {
          code: 'preflight/qemu',
          detail: `${vm.machineType} needs a newer QEMU than ${target.qemuVersion} on ${target.name}`,
        }
      : null,
  (vm, target) =>
    target.machineTypes.includes(vm.machineType)
      ? null
      : {
          code: 'preflight/machine',
          detail: `QEMU ${target.qemuVersion} on ${target.name} has no ${vm.machineType}`,
        },
  (vm, target, seen) =>
    seen.volumeObstacles.length === 0
      ? null
      : {
          code: 'preflight/volume',
          detail: `${seen.volumeObstacles.join('; ')} (${vm.name} from ${target.name})`,
        },
  (vm, target) => {
    const missing = vm.cpuFlags.filter((flag) => !target.cpuFlags.includes(flag));
    return missing.length === 0
      ? null
      : { code: 'preflight/cpu', detail: `${target.name} lacks ${missing.slice(0, 8).join(', ')}` };
  },
  (vm, target, seen) => {
    const needed = vm.memoryBytes + limits.vmmOverheadBytes;
    return needed <= seen.memoryFreeBytes
      ? null
      : {
          code: 'preflight/memory',
          detail: `${formatBytes(needed)} needed, ${formatBytes(seen.memoryFreeBytes)} free`
            + ` on ${target.name}`,
        };
  },
  (vm, target, seen) => {
    const needed = vm.disks.reduce(
      (sum, disk) => sum + (disk.shared === undefined ? disk.sizeBytes : 0), 0);
    return needed === 0 || needed + limits.diskReserveBytes <= seen.diskFreeBytes
      ? null
      : {
          code: 'preflight/disk',
          detail: `${formatBytes(needed + limits.diskReserveBytes)} needed,`
            + ` ${formatBytes(seen.diskFreeBytes)} free on ${target.name}`,
        };
  },
  (vm, target) => {
    const nic = vm.nics.find((card) => !target.segments.includes(card.segment));
    return nic === undefined
      ? null
      : {
          code: 'preflight/segment',
          detail: `${nic.name} (${nic.address}) is on ${nic.segment}; ${target.name} carries`
            + ` ${target.segments.join(', ') || 'none'}`,
        };
  },
  (vm, target, seen) =>
    seen.namesTaken.length === 0
      ? null
      : {
          code: 'preflight/name-taken',
          detail: `${seen.namesTaken.slice(0, 4).join(', ')} of ${vm.name} on ${target.name}`,
        },
  (_vm, target, seen) =>
    seen.addressesAnswered.length === 0
      ? null
      : {
          code: 'preflight/address-taken',
          detail: `${seen.addressesAnswered.join(', ')} on the segment of ${target.name}`,
        },
];

/**
 * The first reason why `target` can't take `vm`, or null. The order is that of cost to repair: what
 * belongs to the VM itself first, then the host's software, its room, its network.
 */
export function preflight(
  vm: RunningVm, target: HostFacts, seen: TargetObservations,
): PreflightRefusal | null {
  if (target.name === vm.host) {
    return { code: 'migration/same-host', detail: `${vm.name} runs on ${target.name}` };
  }
  if (vm.runState !== 'running' && vm.runState !== 'paused') {
    return { code: 'vm/not-running', detail: `${vm.name} is ${vm.runState} on ${vm.host}` };
  }
  for (const check of checks) {
    const refusal = check(vm, target, seen);
    if (refusal !== null) return refusal;
  }
  return null;
}

/** The plain IPv4 address of "198.18.1.10/24"; null when it is none. */
export function plainAddress(cidr: string): string | null {
  const address = cidr.split('/')[0] ?? '';
  return isIPv4(address) ? address : null;
}
