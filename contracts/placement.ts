/**
 * Which host takes which VM: pure, from what the ledger says of hosts and VMs. It is a proposal in
 * good faith: facts are as old as the start of a host's runner, and the target's own preflight has
 * the last word. Used by the evacuation of a host and by `novacron rebalance --plan`.
 */
import type { FailureCode } from './failures.ts';
import { localDisks } from './runner.ts';
import type { HostName, VmName } from './identity.ts';
import { limits, timing } from './limits.ts';
import type { HostView, VmEntry } from './ownership.ts';
import { formatBytes } from './units.ts';
import type { Bytes } from './units.ts';

/** What the host itself keeps for its kernel, its runner and its page cache, part of its memory. */
const hostMemoryReserve = 0.1;
/** A host counts as fuller than another when it is so by more than this part of its memory. */
const worthwhilePart = 0.05;

/** A host as a place for VMs. */
export interface PlacementHost {
  readonly host: HostName;
  readonly cordoned: boolean;
  /** Its runner has not been heard from for longer than a restart takes. */
  readonly silent: boolean;
  readonly segments: readonly string[];
  readonly machineTypes: readonly string[];
  readonly cpuFlags: readonly string[];
  /** Kernel and devices can track dirty memory from outside. */
  readonly tracks: boolean;
  /** Memory that VMs may have in all, and what is left of it. */
  readonly memoryBytes: number;
  readonly memoryFreeBytes: number;
  readonly diskFreeBytes: number;
}

/** A VM as something to be placed. */
export interface PlacementVm {
  readonly vm: VmName;
  readonly host: HostName;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly machineType: string;
  readonly segments: readonly string[];
}

/** Why a host does not take a VM. */
export interface PlacementRefusal {
  readonly host: HostName;
  readonly code: FailureCode;
  readonly detail: string;
}
export interface PlannedMove {
  readonly vm: VmName;
  readonly source: HostName;
  readonly target: HostName;
}
export interface Placement {
  readonly moves: readonly PlannedMove[];
  /** VMs that no host takes now, each host with its first reason. */
  readonly unplaced: readonly {
    readonly vm: VmName; readonly refusals: readonly PlacementRefusal[];
  }[];
}

const memoryNeed = ({ memoryBytes }: { readonly memoryBytes: number }): number =>
  memoryBytes + limits.vmmOverheadBytes;
const diskBytesOf = ({ spec }: VmEntry): number =>
  localDisks(spec).reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);

/** The VM of a ledger's entry. */
export const placementVm = (entry: VmEntry & { readonly owner: HostName }): PlacementVm => ({
  vm: entry.vm, host: entry.owner, memoryBytes: entry.spec.memoryBytes,
  diskBytes: diskBytesOf(entry), machineType: entry.spec.machineType,
  segments: [...new Set(entry.spec.nics.map(({ segment }) => segment))],
});

/**
 * Hosts with what is left of them: every VM that is to run there, or is on its way there, has its
 * memory; disks count where they came after the host told its free space.
 */
export function placementHosts(
  hosts: readonly HostView[], entries: readonly VmEntry[],
): PlacementHost[] {
  return hosts.map(({ facts, cordoned, silentForMs, changedAtMs }) => {
    const comes = (entry: VmEntry): boolean =>
      entry.phase === 'preparing' && entry.target === facts.name;
    const there = entries.filter((entry) =>
      entry.phase !== 'absent' && (entry.owner === facts.name || comes(entry)));
    const usedBytes = there.filter(({ desired }) => desired === 'running')
      .reduce((sum, { spec }) => sum + memoryNeed(spec), 0);
    const addedBytes = there.filter((entry) => comes(entry) || entry.changedAtMs > changedAtMs)
      .reduce((sum, entry) => sum + diskBytesOf(entry), 0);
    const memoryBytes = Math.floor(facts.memoryBytes * (1 - hostMemoryReserve));
    return {
      host: facts.name as HostName, cordoned, silent: silentForMs > timing.hostSilentMsMax,
      segments: facts.segments, machineTypes: facts.machineTypes, cpuFlags: facts.cpuFlags,
      tracks: facts.features.includes('direct-engine'), memoryBytes,
      memoryFreeBytes: Math.max(0, memoryBytes - usedBytes),
      diskFreeBytes: Math.max(0, facts.diskFreeBytes - addedBytes),
    };
  });
}

const refusal = (
  { host }: PlacementHost, code: FailureCode, detail: string,
): PlacementRefusal => ({ host, code, detail });

/** The first reason why a host does not take a VM, null when there is none. */
export function refusalOf(vm: PlacementVm, host: PlacementHost): PlacementRefusal | null {
  if (host.host === vm.host) return refusal(host, 'migration/same-host', `${vm.vm} is there`);
  if (host.cordoned) return refusal(host, 'host/cordoned', 'it takes no new VMs');
  if (host.silent) return refusal(host, 'host/unreachable', 'its runner is silent');
  if (!host.tracks) return refusal(host, 'preflight/kernel', 'it can not track dirty memory');
  if (!host.machineTypes.includes(vm.machineType)) {
    return refusal(host, 'preflight/machine', `it has no ${vm.machineType}`);
  }
  const segment = vm.segments.find((one) => !host.segments.includes(one));
  if (segment !== undefined) {
    return refusal(host, 'preflight/segment', `it does not carry ${segment}`);
  }
  const size = (bytes: number): string => formatBytes(bytes as Bytes);
  if (memoryNeed(vm) > host.memoryFreeBytes) {
    return refusal(host, 'preflight/memory',
      `${size(memoryNeed(vm))} needed, ${size(host.memoryFreeBytes)} left`);
  }
  if (vm.diskBytes > 0 && vm.diskBytes + limits.diskReserveBytes > host.diskFreeBytes) {
    const needed = vm.diskBytes + limits.diskReserveBytes;
    return refusal(host, 'preflight/disk',
      `${size(needed)} needed, ${size(host.diskFreeBytes)} left`);
  }
  return null;
}

/** The host after it has taken the VM. */
export const hostWith = (host: PlacementHost, vm: PlacementVm): PlacementHost => ({
  ...host, memoryFreeBytes: host.memoryFreeBytes - memoryNeed(vm),
  diskFreeBytes: host.diskFreeBytes - vm.diskBytes,
});
const hostWithout = (host: PlacementHost, vm: PlacementVm): PlacementHost => ({
  ...host, memoryFreeBytes: host.memoryFreeBytes + memoryNeed(vm),
});

/** Part of its memory that is left. */
const freePart = ({ memoryFreeBytes, memoryBytes }: PlacementHost): number =>
  memoryBytes > 0 ? memoryFreeBytes / memoryBytes : 0;

/**
 * Has all that the source's QEMU offers, so surely what the guest uses. Another may have it as
 * well: its preflight knows the guest's own flags.
 */
const surelyFits = (host: PlacementHost, source: PlacementHost | undefined): boolean =>
  source === undefined || source.cpuFlags.every((flag) => host.cpuFlags.includes(flag));

/** The best of some hosts: sure before likely, then the emptiest after it, then by name. */
function bestOf(
  candidates: readonly PlacementHost[], vm: PlacementVm, source: PlacementHost | undefined,
): PlacementHost | undefined {
  return candidates.toSorted((a, b) =>
    Number(surelyFits(b, source)) - Number(surelyFits(a, source))
    || freePart(hostWith(b, vm)) - freePart(hostWith(a, vm))
    || (a.host < b.host ? -1 : 1))[0];
}

/**
 * Places the VMs in the order given, each on the host that is the emptiest then: equal VMs spread
 * evenly over equal hosts. `targets` narrows the choice; `excluded` are hosts that have refused.
 */
export function placeVms(wish: {
  readonly vms: readonly PlacementVm[];
  readonly hosts: readonly PlacementHost[];
  readonly targets: readonly HostName[] | null;
  readonly excluded?: (vm: VmName) => readonly PlacementRefusal[];
}): Placement {
  const { vms, hosts, targets, excluded = () => [] } = wish;
  const left = new Map(hosts.map((host) => [host.host, host]));
  const moves: PlannedMove[] = [];
  const unplaced: Placement['unplaced'][number][] = [];
  for (const vm of vms) {
    const wanted = [...left.values()].filter(({ host }) =>
      host !== vm.host && (targets === null || targets.includes(host)));
    const known = excluded(vm.vm);
    const refusals = wanted.map((host) =>
      known.find((one) => one.host === host.host) ?? refusalOf(vm, host));
    const best = bestOf(wanted.filter((_, index) => refusals[index] === null), vm,
      left.get(vm.host));
    if (best === undefined) {
      unplaced.push({ vm: vm.vm, refusals: refusals.filter((one) => one !== null) });
      continue;
    }
    left.set(best.host, hostWith(best, vm));
    moves.push({ vm: vm.vm, source: vm.host, target: best.host });
  }
  return { moves, unplaced };
}

/** The used part of the fullest host less that of the emptiest. */
export function imbalanceOf(hosts: readonly PlacementHost[]): number {
  const parts = hosts.map((host) => 1 - freePart(host));
  return parts.length === 0 ? 0 : Math.max(...parts) - Math.min(...parts);
}

/** What a rebalancing would do. */
export interface RebalancePlan {
  readonly moves: readonly PlannedMove[];
  /** See `imbalanceOf`; over hosts that take VMs. */
  readonly imbalanceBefore: number;
  readonly imbalanceAfter: number;
}

/** The move off one of the fullest hosts that evens out the most; null when none is worth it. */
function bestMove(
  hosts: ReadonlyMap<HostName, PlacementHost>, vms: readonly PlacementVm[],
): PlannedMove | null {
  const sorted = [...hosts.values()].toSorted((a, b) =>
    freePart(a) - freePart(b) || (a.host < b.host ? -1 : 1));
  for (const [index, fullest] of sorted.entries()) {
    for (const emptiest of sorted.slice(index + 1).toReversed()) {
      const gap = freePart(emptiest) - freePart(fullest);
      const after = (vm: PlacementVm): number =>
        Math.abs(freePart(hostWith(emptiest, vm)) - freePart(hostWithout(fullest, vm)));
      const best = vms
        .filter((vm) => vm.host === fullest.host && surelyFits(emptiest, fullest)
          && refusalOf(vm, emptiest) === null && gap - after(vm) > worthwhilePart
          // The target may not become what the source was.
          && freePart(hostWith(emptiest, vm)) >= freePart(fullest))
        .toSorted((a, b) => after(a) - after(b) || (a.vm < b.vm ? -1 : 1))[0];
      if (best !== undefined) {
        return { vm: best.vm, source: fullest.host, target: emptiest.host };
      }
    }
  }
  return null;
}

/**
 * Moves that even out the used part of memory over the hosts that take VMs; each VM moves at most
 * once. Starts nothing. An empty plan: nothing would become better by more than 5 %.
 */
export function planRebalance(wish: {
  readonly vms: readonly PlacementVm[];
  readonly hosts: readonly PlacementHost[];
  readonly moveCountMax: number;
}): RebalancePlan {
  const open = wish.hosts.filter(({ cordoned, silent }) => !cordoned && !silent);
  const hosts = new Map(open.map((host) => [host.host, host]));
  let vms = wish.vms.filter(({ host }) => hosts.has(host));
  const moves: PlannedMove[] = [];
  while (moves.length < wish.moveCountMax) {
    const move = bestMove(hosts, vms);
    const vm = vms.find((one) => one.vm === move?.vm);
    const [source, target] = [hosts.get(move?.source as HostName),
      hosts.get(move?.target as HostName)];
    if (move === null || vm === undefined || source === undefined || target === undefined) break;
    hosts.set(source.host, hostWithout(source, vm));
    hosts.set(target.host, hostWith(target, vm));
    vms = vms.filter((one) => one !== vm);
    moves.push(move);
  }
  return {
    moves, imbalanceBefore: imbalanceOf(open), imbalanceAfter: imbalanceOf([...hosts.values()]),
  };
}
