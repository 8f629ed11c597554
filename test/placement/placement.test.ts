/** Placement and rebalancing: what they must never propose, over random data centres. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import { limits } from '../../contracts/limits.ts';
import {
  hostWith, imbalanceOf, placeVms, planRebalance, refusalOf,
} from '../../contracts/placement.ts';
import type { PlacementHost, PlacementVm } from '../../contracts/placement.ts';
import { gib, mib } from '../../contracts/units.ts';

const seed = Number(process.env['NOVACRON_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
const check = <Ts>(property: fc.IProperty<Ts>): void =>
  fc.assert(property, { seed, numRuns: 300 });

const hostOf = (index: number, more: Partial<PlacementHost> = {}): PlacementHost => ({
  host: hostName(`h${index}`), cordoned: false, silent: false, segments: ['lab'],
  machineTypes: ['pc-i440fx-7.2'], cpuFlags: ['sse2'], tracks: true, memoryBytes: 16 * gib,
  memoryFreeBytes: 16 * gib, diskFreeBytes: 64 * gib, ...more,
});
const vmOf = (index: number, more: Partial<PlacementVm> = {}): PlacementVm => ({
  vm: vmName(`v${index}`), host: hostName('h0'), memoryBytes: gib, diskBytes: 0,
  machineType: 'pc-i440fx-7.2', segments: ['lab'], ...more,
});

const hosts = fc.array(fc.record({
  cordoned: fc.boolean(), silent: fc.boolean(), tracks: fc.boolean(),
  segments: fc.subarray(['lab', 'dmz']), machineTypes: fc.subarray(['pc-i440fx-7.2', 'pc-q35-7.2']),
  cpuFlags: fc.subarray(['sse2', 'avx2']), free: fc.integer({ min: 0, max: 16 }),
  diskFreeBytes: fc.integer({ min: 0, max: 8 }).map((size) => size * gib),
}), { minLength: 1, maxLength: 6 }).map((all) => all.map(({ free, ...host }, index) =>
  hostOf(index, { ...host, memoryFreeBytes: free * gib })));
const vms = fc.array(fc.record({
  memoryBytes: fc.integer({ min: 1, max: 24 }).map((size) => size * 256 * mib),
  diskBytes: fc.integer({ min: 0, max: 3 }).map((size) => size * gib),
  segments: fc.subarray(['lab', 'dmz']),
  machineType: fc.constantFrom('pc-i440fx-7.2', 'pc-q35-7.2'),
  host: fc.integer({ min: 0, max: 5 }).map((index) => hostName(`h${index}`)),
}), { maxLength: 14 }).map((all) => all.map((vm, index) => vmOf(index, vm)));

/** Hosts after the moves, and whether each was allowed when its turn came. */
function play(
  start: readonly PlacementHost[], all: readonly PlacementVm[],
  moves: readonly { readonly vm: string; readonly target: string }[],
): PlacementHost[] {
  const at = new Map(start.map((host) => [host.host as string, host]));
  for (const { vm: name, target } of moves) {
    const [vm, host] = [all.find(({ vm: one }) => one === name), at.get(target)];
    if (vm === undefined || host === undefined) throw new Error(`${name} to ${target}`);
    expect(refusalOf(vm, host), `${name} to ${target}`).toBeNull();
    at.set(target, hostWith(host, vm));
  }
  return [...at.values()];
}

describe('placement', () => {
  console.info(`seed ${seed} (NOVACRON_TEST_SEED)`);

  it('takes only what fits when its turn comes; every other VM has a reason for every host', () => {
    check(fc.property(hosts, vms, (some, all) => {
      const { moves, unplaced } = placeVms({ hosts: some, vms: all, targets: null });
      play(some, all, moves);
      expect([...moves, ...unplaced].map(({ vm }) => vm).toSorted())
        .toEqual(all.map(({ vm }) => vm).toSorted());
      for (const { vm, refusals } of unplaced) {
        const own = all.find((one) => one.vm === vm)?.host;
        expect(refusals.map(({ host }) => host))
          .toEqual(some.map(({ host }) => host).filter((host) => host !== own));
      }
    }));
  });

  it('keeps to the hosts named, and to no host that has refused', () => {
    check(fc.property(hosts, vms, fc.subarray([0, 1, 2, 3, 4, 5]), (some, all, wanted) => {
      const targets = wanted.map((index) => hostName(`h${index}`));
      const refused = { host: hostName('h1'), code: 'preflight/cpu', detail: '' } as const;
      const { moves } = placeVms({ hosts: some, vms: all, targets, excluded: () => [refused] });
      for (const { target } of moves) {
        expect(targets).toContain(target);
        expect(target).not.toBe('h1');
      }
    }));
  });

  it('does not depend on the order in which the ledger lists hosts', () => {
    check(fc.property(hosts, vms, (some, all) => {
      expect(placeVms({ hosts: some.toReversed(), vms: all, targets: null }).moves)
        .toEqual(placeVms({ hosts: some, vms: all, targets: null }).moves);
    }));
  });

  it('spreads equal VMs over equal hosts: counts differ by one at most', () => {
    check(fc.property(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 0, max: 20 }),
      (hostCount, vmCount) => {
        const some = Array.from({ length: hostCount + 1 }, (_, index) =>
          hostOf(index, { memoryFreeBytes: 64 * gib, memoryBytes: 64 * gib }));
        const all = Array.from({ length: vmCount }, (_, index) => vmOf(index));
        const { moves } = placeVms({ hosts: some, vms: all, targets: null });
        const counts = some.slice(1).map(({ host }) =>
          moves.filter(({ target }) => target === host).length);
        expect(moves).toHaveLength(vmCount);
        expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
      }));
  });

  it('prefers a host that surely has the CPU flags to an emptier one that may', () => {
    const some = [hostOf(0, { cpuFlags: ['sse2', 'avx2'] }), hostOf(1),
      hostOf(2, { cpuFlags: ['sse2', 'avx2', 'x'], memoryFreeBytes: 4 * gib })];
    expect(placeVms({ hosts: some, vms: [vmOf(1)], targets: null }).moves)
      .toMatchObject([{ target: 'h2' }]);
  });

  it('names each reason', () => {
    const reasons = [
      hostOf(0), hostOf(1, { cordoned: true }), hostOf(1, { silent: true }),
      hostOf(1, { tracks: false }), hostOf(1, { machineTypes: [] }), hostOf(1, { segments: [] }),
      hostOf(1, { memoryFreeBytes: gib + limits.vmmOverheadBytes - 1 }),
      hostOf(1, { diskFreeBytes: gib }),
    ].map((host) => refusalOf(vmOf(1, { diskBytes: gib }), host)?.code);
    expect(reasons).toEqual([
      'migration/same-host', 'host/cordoned', 'host/unreachable', 'preflight/kernel',
      'preflight/machine', 'preflight/segment', 'preflight/memory', 'preflight/disk']);
  });
});

describe('rebalancing', () => {
  it('never makes it worse, never moves a VM twice, keeps to hosts that take VMs', () => {
    check(fc.property(hosts, vms, (some, all) => {
      const plan = planRebalance({ hosts: some, vms: all, moveCountMax: 50 });
      expect(plan.imbalanceAfter).toBeLessThanOrEqual(plan.imbalanceBefore);
      expect(new Set(plan.moves.map(({ vm }) => vm)).size).toBe(plan.moves.length);
      for (const { vm, source, target } of plan.moves) {
        const from = some.find(({ host }) => host === source);
        const to = some.find(({ host }) => host === target);
        expect([from?.cordoned, from?.silent, to?.cordoned, to?.silent])
          .toEqual([false, false, false, false]);
        expect(all.find((one) => one.vm === vm)?.host).toBe(source);
      }
    }));
  });

  it('evens out a full host, in no more moves than allowed', () => {
    const some = [hostOf(0, { memoryFreeBytes: 2 * gib }), hostOf(1), hostOf(2)];
    const all = Array.from({ length: 10 }, (_, index) => vmOf(index));
    const plan = planRebalance({ hosts: some, vms: all, moveCountMax: 50 });
    expect(plan.imbalanceBefore).toBeGreaterThan(0.8);
    expect(plan.imbalanceAfter).toBeLessThan(0.15);
    expect(planRebalance({ hosts: some, vms: all, moveCountMax: 2 }).moves).toHaveLength(2);
  });

  it('leaves alone what is even', () => {
    const some = [hostOf(0, { memoryFreeBytes: 8 * gib }), hostOf(1, { memoryFreeBytes: 8 * gib })];
    const plan = planRebalance({ hosts: some, vms: [vmOf(1)], moveCountMax: 5 });
    expect(plan).toEqual({ moves: [], imbalanceBefore: 0, imbalanceAfter: 0 });
    expect(imbalanceOf([])).toBe(0);
  });
});
