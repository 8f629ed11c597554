import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { cellsOf } from './cells.ts';
import { coveredBy, lineOf, resultLine, Results, settledOn, summarise } from './results.ts';
import type { RunRecord } from './run.ts';

const record: RunRecord = {
  cell: { victim: 'ledger', phase: 'target/cont/before', fault: 'sigkill' }, outcome: 'completed',
  guestVerified: true, violations: [], vcpuRunningMax: 1, effectiveMax: 1, runningCopiesMax: 1,
  lostWrites: 0, recoveredMs: 1200, endedMs: 3000, bytesSent: 10, bytesSentAgain: 5,
  told: 'completed', took: true, wholeMs: 20_000, partsMs: { boot: 5000, move: 3000 },
};
const of = { commit: 'abc', seed: 1 };
const chosen = cellsOf({ victims: ['ledger', 'target-vmm'], phases: ['target/cont'],
  faults: ['sigkill', 'clock-step'] });

describe('results', () => {
  const folder = mkdtempSync(join(tmpdir(), 'novacron-results-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  it('are read back for their commit, a torn line is passed over', () => {
    const path = join(folder, 'deeper/runs.jsonl');
    const results = new Results(path);
    results.add(lineOf(record, of));
    results.add(lineOf(record, { ...of, commit: 'other' }));
    results.add(lineOf({ ...record, cell: null, lostWrites: Number.NaN }, of));
    appendFileSync(path, '{"kind":"run","comm');
    const lines = new Results(path).of(new Set(['abc']), resultLine);
    expect(lines.map(({ fault, lostWrites }) => [fault, lostWrites]))
      .toEqual([['sigkill', 0], ['-', null]]);
  });
  it('say where they can\'t be written', () => {
    writeFileSync(join(folder, 'file'), '');
    expect(() => new Results(join(folder, 'file/runs.jsonl'))).toThrow(/input\/invalid.*--out/);
  });
});

describe('coverage', () => {
  it('counts what was tried, not what was not reached or what the lab spoilt', () => {
    const line = lineOf(record, of);
    expect(coveredBy([line]).size).toBe(1);
    expect(coveredBy([
      { ...line, outcome: 'not-reached' }, { ...line, outcome: 'lab-failed' },
      lineOf({ ...record, cell: null }, of),
    ]).size).toBe(0);
  });
});

describe('a line', () => {
  it('names no folder of the machine that it was written on', () => {
    const { told, violations } = lineOf({ ...record,
      told: 'ended: /var/lib/lab/x/h1.log says no', violations: ['left behind: /dev/shm/a/b.mem'],
    }, of);
    expect([told, ...violations]).toEqual(['ended: h1.log says no', 'left behind: b.mem']);
  });
  it('needs no repetition, but where something went wrong on another commit', () => {
    const line = lineOf(record, of);
    const bad = { ...line, violations: ['the move does not end'] };
    expect(settledOn([line, bad], 'abc')).toHaveLength(2);
    expect(settledOn([line, bad], 'later')).toEqual([line]);
  });
});

describe('summarise', () => {
  it('says the worst and what must never be', () => {
    const bad: RunRecord = {
      ...record, cell: { victim: 'target-vmm', phase: 'target/cont/after', fault: 'sigkill' },
      outcome: 'down', violations: ['the guest does not answer'], recoveredMs: null,
      bytesSentAgain: 700, lostWrites: 2,
    };
    const summary = summarise([lineOf(record, of), lineOf(bad, of)], { ...of, chosen });
    expect(summary).toMatchObject({
      runs: 2, cells: { chosen: 8, covered: 2, impossible: 2 },
      outcomes: { completed: 1, down: 1 },
      medianPartsMs: { boot: 5000, move: 3000 },
      worst: { runningCopiesMax: 1, lostWrites: 2, recoveredMs: 1200, bytesSentAgain: 700 },
      violations: [{ cell: 'target-vmm sigkill at target/cont/after' }],
    });
  });
});
