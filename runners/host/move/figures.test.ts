import { expect, test } from 'vitest';
import { transferFigures } from './figures.ts';
import type { HandOverFacts } from './figures.ts';

const facts: HandOverFacts = {
  startedAtMs: 1_000, connectedMs: 1_030, memoryBegunMs: 1_042, stopEventMs: 1_500,
  stoppedMs: 1_501, nowMs: 1_560, clockOffsetMs: 10_000, missingPageCount: 0,
  targetMarks: {
    memoryInMs: 11_505, deviceInMs: 11_510, flushedMs: 11_511, committedMs: 11_513,
    gateRaisedMs: 11_514, startedMs: 11_516, resumeEventMs: 11_520,
  },
  snapshot: {
    round: 2, bytesOnWire: 7, bytesDone: 6, diskBytes: 0, postCopyFaults: 0,
  } as unknown as HandOverFacts['snapshot'],
  convergence: 'met-aim',
};

test('the parts of the total are cut at the marks and sum to it', () => {
  const figures = transferFigures(facts);
  expect(figures.totalMs).toBe(560);
  expect(figures.totalParts).toEqual({
    connectMs: 30, diskMs: 12, memoryMs: 458, downtimeMs: 20, closingMs: 40 });
  expect(Object.values(figures.totalParts ?? {}).reduce((sum, part) => sum + part, 0)).toBe(560);
  expect(figures.mode).toBe('pre-copy');
});

test('pages that were missing at the start make it a post-copy', () => {
  expect(transferFigures({ ...facts, missingPageCount: 1 }).mode).toBe('post-copy');
});
