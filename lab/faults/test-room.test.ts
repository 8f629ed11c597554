import { expect, it } from 'vitest';
import type { Cell } from './cells.ts';
import type { RunRecord } from './run.ts';
import { leavesGuestAsItWas } from './test-room.ts';

const cell: Cell = { victim: 'ledger', phase: 'memory', fault: 'sigkill' };
const record: RunRecord = {
  cell, outcome: 'completed', guestVerified: true, violations: [], vcpuRunningMax: 1,
  effectiveMax: 1, runningCopiesMax: 1, lostWrites: 0, recoveredMs: 1, endedMs: 1, bytesSent: 1,
  bytesSentAgain: 0, told: 'completed', took: true, wholeMs: 1, partsMs: {},
};

it.each<[string, Partial<RunRecord>, boolean]>([
  ['a good move', {}, true], ['no fault', { cell: null }, true],
  ['a move that stayed', { outcome: 'stayed' }, true],
  ['a new boot', { outcome: 'booted-anew' }, false],
  ['a violation', { violations: ['left behind: its card'] }, false],
  ['a guard that is gone', { cell: { ...cell, victim: 'source-guard' } }, false],
  ['a VMM that is gone', { cell: { ...cell, victim: 'target-vmm' } }, false],
  ['a load that fills memory', { cell: { ...cell, phase: 'post-copy' } }, false],
])('after %s: the next run moves the same guest: %s', (_name, change, same) => {
  expect(leavesGuestAsItWas({ ...record, ...change })).toBe(same);
});
