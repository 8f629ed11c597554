import { describe, expect, it } from 'vitest';
import { closingLines, closingOf, demoFaults } from './closing.ts';
import type { DemoEvidence } from './closing.ts';
import { readDemoOptions } from './options.ts';

const gaps = { answers: 9, gapMsMax: 12.345, gapMaxBeganMs: 1, gapMsP99: 2.5, gapMsMedian: 2 };
const client = { echo: gaps, redis: gaps, ackedWrites: 3, connectionLost: false };
const witness = {
  bootId: 'b', counter: 1, selfCheckFailures: 0, pagesWritten: 0, pagesChecked: 0, patternBytes: 0,
  dataBytes: 0, running: true, dirtyRateAchievedBytesPerSecond: 0, longestGapMs: 0,
};
const parts = {
  stopMs: 1, lastPassMs: 2, deviceStateMs: 3, flushMs: 0.5, ledgerMs: 1, gateMs: 0.25, startMs: 0.25,
};
const evidence = (change: Partial<DemoEvidence> = {}): DemoEvidence => ({
  outcome: {
    kind: 'completed', version: 1, digest: 'd', epochBefore: 1, epochAfter: 2,
    migration: 'migrate/demo/r', vm: 'demo', source: 'h1', target: 'h2',
    figures: {
      totalMs: 500, downtimeMs: 8, downtimeParts: parts, rounds: 3, bytesOnWire: 1 << 20,
      memoryBytesSent: 1, diskBytesSent: 0, postCopyFaults: 0, convergence: 'fits',
    },
  } as unknown as DemoEvidence['outcome'],
  workflowId: 'migrate/demo/r', workflowUrl: 'http://x', accelerator: 'tcg', vcpus: 1,
  memoryBytes: 1, diskBytes: 0, resting: client, around: client,
  writes: { ackedWrites: 7, lostWrites: 0, failedWrites: 0, connectionLost: false },
  before: witness, after: witness, ownerBefore: 'h1', ownerAfter: 'h2', epochBefore: 1,
  epochAfter: 2, ...change,
});

describe('closingOf', () => {
  it('has the promised fields and no other, and parts that sum to the downtime', () => {
    const closing = closingOf(evidence());
    expect(Object.keys(closing)).toEqual([
      'outcome', 'workflowId', 'workflowUrl', 'engine', 'accelerator', 'vcpus', 'memoryBytes',
      'diskBytes', 'rounds', 'bytesOnWire', 'totalMs', 'downtimeMs', 'downtimePartsMs',
      'outsideGapMsMax', 'restingGapMsP99', 'ackedWrites', 'lostWrites', 'bootIdBefore',
      'bootIdAfter', 'guestSelfCheckFailures', 'ownerBefore', 'ownerAfter', 'epochBefore',
      'epochAfter',
    ]);
    const sum = Object.values(closing.downtimePartsMs ?? {}).reduce((a, b) => a + b, 0);
    expect(sum).toBeCloseTo(closing.downtimeMs ?? 0, 2);
    expect(demoFaults(closing, false)).toEqual([]);
    expect(closingLines(closing, 1, []).join('\n')).toContain('h1 to h2');
  });
  it.each([
    ['lost', { writes: { ackedWrites: 7, lostWrites: 2, failedWrites: 0, connectionLost: false } }],
    ['booted', { after: { ...witness, bootId: 'c' } }],
    ['damaged', { after: { ...witness, selfCheckFailures: 4 } }],
    ['epoch', { epochAfter: 1 }],
  ])('is not content with: %s', (word, change) => {
    expect(demoFaults(closingOf(evidence(change)), false).join()).toContain(word);
  });
});

describe('readDemoOptions', () => {
  it('reads sizes and rates', () => {
    expect(readDemoOptions(['--memory', '1GiB', '--dirty-rate', 'max', '--disk', '0', '--json']))
      .toMatchObject({ memory: 1 << 30, dirtyRate: null, disk: 0, json: true, vcpus: 1 });
  });
});
