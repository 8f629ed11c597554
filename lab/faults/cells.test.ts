import { describe, expect, it } from 'vitest';
import { faultPoints } from '../../contracts/fault-points.ts';
import {
  cellsOf, clockOf, cutOf, faults, guestKindOf, inOrder, mayBootAnew, nameOfCell, obstacleOf, phases, stopMsOf, victims,
  wayTo,
} from './cells.ts';
import type { Cell, Fault, Phase, Victim } from './cells.ts';

const killed = (victim: Victim, phase: Phase): Cell => ({ victim, phase, fault: 'sigkill' });

describe('cells', () => {
  it('are every phase, victim and fault', () => {
    const all = cellsOf({ victims: [], phases: [], faults: [] });
    expect(all).toHaveLength(phases.length * victims.length * faults.length);
    expect(new Set(all.map(nameOfCell)).size).toBe(all.length);
  });
  it('are chosen by step, point or name', () => {
    const chosen = cellsOf({ victims: ['ledger'], phases: ['target/cont', 'memory'],
      faults: ['sigkill'] });
    expect(chosen.map(({ phase }) => phase))
      .toEqual(['target/cont/before', 'target/cont/after', 'memory']);
  });
  it('let both runners, both VMMs and the ledger be killed at every point a move can come to', () => {
    const refused = (['source-runner', 'target-runner', 'source-vmm', 'target-vmm', 'ledger'] as const)
      .flatMap((victim) => faultPoints.map((phase) => killed(victim, phase)))
      .filter((cell) => obstacleOf(cell) !== null)
      .map((cell) => `${nameOfCell(cell)}: ${obstacleOf(cell)}`);
    for (const text of refused) {
      expect(text).toMatch(
        /there is none (yet|any more)|the way there has ended it|a single fault does not lead/);
    }
    expect(obstacleOf(killed('source-runner', 'target/cont/before'))).toBeNull();
    expect(wayTo('source/revert/before')).toMatchObject({ victim: 'target-vmm' });
  });
  it('fill the disks of hosts and of the ledger', () => {
    const full = cellsOf({ victims: [], phases: ['memory'], faults: ['disk-full'] })
      .filter((cell) => obstacleOf(cell) === null).map(({ victim }) => victim);
    expect(full).toEqual(['ledger', 'source-host', 'target-host']);
  });
  it('take the memory of every process, of no host', () => {
    const starved = cellsOf({ victims: [], phases: ['memory'], faults: ['oom'] })
      .filter((cell) => obstacleOf(cell) === null).map(({ victim }) => victim);
    expect(starved).toEqual(victims.filter((victim) => !victim.endsWith('-host')));
    expect(mayBootAnew({ victim: 'source-vmm', phase: 'memory', fault: 'oom' })).toBe(true);
  });
  it('have a guest on the volume server where that is the victim', () => {
    const cell: Cell = { victim: 'volume-server', phase: 'memory', fault: 'sigstop-20s' };
    expect(obstacleOf(cell)).toBeNull();
    expect(guestKindOf(cell)).toEqual({ failover: 'automatic', disk: 'shared' });
    expect(guestKindOf(killed('ledger', 'memory'))).toEqual({ failover: 'none', disk: 'local' });
  });
  it('set the clocks of our own processes, of a runner the wall clock alone', () => {
    const of = (fault: Fault): Victim[] =>
      cellsOf({ victims: [], phases: ['memory'], faults: [fault] })
        .filter((cell) => obstacleOf(cell) === null).map(({ victim }) => victim);
    expect(of('clock-step')).toEqual(['control-worker', 'ledger', 'source-runner', 'target-runner']);
    expect(of('clock-fast')).toEqual(['control-worker', 'ledger']);
    expect(clockOf('clock-slow')?.rate).toBeLessThan(1);
    expect(clockOf('sigkill')).toBeNull();
  });
  it('say how long they take', () => {
    expect(cutOf('cut-data-30s')).toEqual({ link: 'data', ms: 30_000 });
    expect(cutOf('sigkill')).toBeNull();
    expect(stopMsOf('sigstop-20s')).toBeGreaterThan(13_120);
  });
});

describe('a new boot', () => {
  it.each<[Victim, Phase, boolean]>([
    ['source-vmm', 'source/stop/before', true], ['source-host', 'memory', true],
    ['source-vmm', 'target/commit/after', false], ['source-host', 'target/cont/after', false],
    ['target-vmm', 'target/commit/before', false], ['target-vmm', 'target/cont/before', false],
    ['target-vmm', 'target/cont/after', true], ['target-vmm', 'source/release/before', true],
    ['target-host', 'target/commit/before', false], ['target-host', 'target/cont/before', true],
    ['source-runner', 'source/stop/after', false], ['ledger', 'target/started/before', false],
    ['source-vmm', 'source/copy-memory/after', false], ['source-vmm', 'post-copy', true],
  ])('after %s at %s: %s', (victim, phase, allowed) => {
    expect(mayBootAnew(killed(victim, phase))).toBe(allowed);
  });
  it('is never right after a stop or a cut', () => {
    expect(mayBootAnew({ victim: 'source-vmm', phase: 'memory', fault: 'sigstop-3s' })).toBe(false);
  });
});

describe('the order', () => {
  const cells = cellsOf({ victims: ['ledger'], phases: ['memory', 'target/cont'], faults: [] });
  it('is that of the seed', () => {
    expect(inOrder(cells, 7)).toEqual(inOrder(cells, 7));
    expect(inOrder(cells, 7)).not.toEqual(inOrder(cells, 8));
  });
  it('has kills first', () => {
    expect(inOrder(cells, 7).slice(0, 3).every(({ fault }) => fault === 'sigkill')).toBe(true);
  });
});
