import { describe, expect, it } from 'vitest';
import { cellsOf, nameOfCell, obstacleOf, phases, victims } from './cells.ts';
import { goalCounts, goalsOf, inBreadth, stageOf, stages } from './coverage.ts';

const all = cellsOf({ victims: [], phases: [], faults: [] });
const possible = all.filter((cell) => obstacleOf(cell) === null);

describe('stages', () => {
  it('hold every phase, and no stage is empty', () => {
    expect(new Set(phases.map(stageOf))).toEqual(new Set(stages));
  });
  it.each([
    ['source/copy-memory/before', 'memory'], ['source/copy-memory/after', 'started'],
    ['target/cont/before', 'blackout'], ['target/cont/after', 'started'],
    ['source/revert/before', 'undoing'], ['control/abort/after', 'undoing'],
  ] as const)('%s is %s', (phase, stage) => {
    expect(stageOf(phase)).toBe(stage);
  });
});

describe('goals', () => {
  it('of a kill are its pairs and its point', () => {
    expect(goalsOf({ phase: 'source/stop/before', victim: 'ledger', fault: 'sigkill' })).toEqual([
      'victim, fault: ledger, sigkill', 'stage, fault: blackout, sigkill',
      'stage, victim killed: blackout, ledger',
      'fault point, runner, VMM or ledger killed: source/stop/before, ledger',
    ]);
  });
  it('are counted, and what no cell can serve is told with its reason', () => {
    const [tried = all[0]!] = possible.filter(({ fault, victim }) =>
      fault === 'sigkill' && victim === 'ledger');
    const counts = goalCounts(all, new Set([nameOfCell(tried)]));
    expect(counts.map(({ covered }) => covered)).toEqual([1, 1, 1, 1]);
    for (const { possible: count, open, covered } of counts) {
      expect(open.length).toBe(count - covered);
    }
    expect(counts[0]?.impossible).toContainEqual({
      goal: 'temporal, disk-full', reason: 'a disk is filled under a host or under the ledger' });
  });
});

describe('breadth', () => {
  const seed = 7;
  it('serves new goals first: no victim comes again before each had the fault', () => {
    const kills = possible.filter(({ fault }) => fault === 'sigkill');
    const chosen = inBreadth(kills, { seed, tried: [], count: victims.length });
    expect(new Set(chosen.map(({ victim }) => victim)).size).toBe(victims.length);
  });
  it('leaves to later what was tried', () => {
    const pairs = possible.filter(({ victim, phase }) => victim === 'ledger' && phase === 'memory');
    const [first] = inBreadth(pairs, { seed, tried: [], count: 1 });
    const again = inBreadth(pairs, { seed, tried: [first!], count: 1 });
    expect(again[0]?.fault).not.toBe(first?.fault);
  });
  it('is that of the seed, and leaves nothing out', () => {
    const few = possible.slice(0, 60);
    const order = inBreadth(few, { seed, tried: [], count: 100 });
    expect(order).toEqual(inBreadth(few, { seed, tried: [], count: 100 }));
    expect(new Set(order.map(nameOfCell))).toEqual(new Set(few.map(nameOfCell)));
  });
});
