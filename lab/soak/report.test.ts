import { describe, expect, it } from 'vitest';
import { lineOf, soakLine, summarise } from './report.ts';
import type { SoakLine } from './report.ts';
import { nextCell, soakCells } from './soak.ts';
import type { SoakStep } from './soak.ts';
import { mayBootAnew, randomOf } from '../faults/cells.ts';

const step = (moves: number, value = 20): SoakStep => ({
  record: {
    cell: null, outcome: 'completed', told: 'completed', took: true, violations: [], guestVerified: true,
    lostWrites: 0, recoveredMs: 10, endedMs: 20, vcpuRunningMax: 1, effectiveMax: 1,
    runningCopiesMax: 1, bytesSent: 1, bytesSentAgain: null, wholeMs: 6_000, partsMs: {},
  },
  readings: [{ who: 'ledger', what: 'descriptors', life: '1', moves, value }],
});
const of = { commit: 'abc', seed: 7 };
const lines = (count: number, valueAt: (move: number) => number): SoakLine[] =>
  Array.from({ length: count }, (_, move) =>
    lineOf(step(move, valueAt(move)), { ...of, sitting: 1 }));

describe('a soak', () => {
  it('passes when nothing grew and nothing was lost', () => {
    expect(summarise(lines(30, () => 20), of)).toMatchObject({
      verdict: 'passed', moves: 30, minutes: 3, faults: 0, lostWrites: 0, grows: [] });
  });
  it('fails for a loss, for what could not be read back, and for a leak', () => {
    const [first, ...rest] = lines(30, () => 20);
    for (const change of [{ lostWrites: 1 }, { lostWrites: null }, { violations: ['two ran'] }]) {
      expect(summarise([{ ...first as SoakLine, ...change }, ...rest], of).verdict)
        .toBe('failed');
    }
    expect(summarise(lines(30, (move) => move), of))
      .toMatchObject({ verdict: 'failed', grows: ['ledger: descriptors'] });
  });
  it('says that it was too short', () => {
    expect(summarise(lines(5, () => 20), of).verdict).toBe('too short');
    expect(summarise([], of).verdict).toBe('too short');
  });
  it('writes lines that are read back', () => {
    const line = lineOf({ ...step(1), record: { ...step(1).record, lostWrites: Number.NaN } },
      { ...of, sitting: 1 });
    expect(soakLine.parse(JSON.parse(JSON.stringify(line)))).toMatchObject({ lostWrites: null });
  });
});

describe('faults of a soak', () => {
  it('are of every short kind, and none may cost the guest its memory', () => {
    expect(soakCells.some(mayBootAnew)).toBe(false);
    const random = randomOf(1);
    const met = Array.from({ length: 600 }, () => nextCell(random)?.fault ?? null);
    expect(new Set(met)).toEqual(new Set([null, ...soakCells.map(({ fault }) => fault)]));
    expect(met.filter((fault) => fault !== null).length).toBeGreaterThan(120);
    expect(met.filter((fault) => fault !== null).length).toBeLessThan(280);
  });
});
