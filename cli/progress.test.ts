/** Progress never runs backwards, whatever is reported. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { MigrationPhase, MigrationStatus, SessionProgress } from '../contracts/migration.ts';
import { defaultPolicy } from '../contracts/migration.ts';
import { copyPercent, formatMillis, laterProgress, nextView, progressLine } from './progress.ts';
import type { ProgressView } from './progress.ts';

const phases: readonly MigrationPhase[] = ['preflight', 'reserve', 'prepare-target', 'copy-disk',
  'copy-memory', 'switchover', 'post-copy', 'verify', 'settle', 'release', 'done'];
const count = fc.nat({ max: 2 ** 40 });
const progress: fc.Arbitrary<SessionProgress> = fc.record({
  version: fc.constant(1 as const),
  phase: fc.constantFrom('connecting', 'disk', 'memory', 'switchover', 'post-copy', 'ended'),
  paused: fc.boolean(), round: fc.nat({ max: 99 }), bytesPlanned: count, bytesDone: count,
  bytesOnWire: count, diskBytesTotal: count, diskBytesDone: count, dirtyBytesPerSecond: count,
  sendBytesPerSecond: count, etaMs: fc.option(count), estimatedDowntimeMs: fc.option(count),
  convergence: fc.string(), mirrorMode: fc.constantFrom('none', 'background', 'write-blocking'),
});
const statusOf = (phase: MigrationPhase, percent: number, now: SessionProgress | null) => ({
  version: 1, phase, vm: 'db', source: 'h1', target: 'h2', engine: 'direct', percent,
  size: { memoryBytes: 2_000, diskBytes: 0 },
  pointOfNoReturnPassed: false, policy: defaultPolicy, progress: now, waitingFor: null,
    outcome: null,
}) as unknown as MigrationStatus;
const status = fc.tuple(fc.constantFrom(...phases), fc.float({ min: 0, max: 100, noNaN: true }),
  fc.option(progress)).map(([phase, percent, now]) => statusOf(phase, percent, now));

describe('nextView', () => {
  it('shows how far the check is while the move waits for it, and not afterwards', () => {
    const check = { version: 1, pagesDone: 400, pagesTotal: 1_000, etaMs: 1_800 } as const;
    const status = statusOf('verify', 96.8, null);
    const view = nextView(null, { status, heartbeat: null, check });
    expect(progressLine(view, null))
      .toContain('96.8 %  verify  ETA 1.8 s  memory compared to 40 %');
    expect(progressLine({ ...view, check: { ...check, etaMs: null } }, null))
      .toContain('ETA: estimating');
    const over = { status: statusOf('settle', 98, null), heartbeat: null, check };
    const settling = nextView(view, over);
    expect(settling.check).toBeNull();
  });
  it('never falls in percent, bytes, rounds or phase', () => {
    fc.assert(fc.property(fc.array(fc.tuple(status, fc.option(progress)), { minLength: 2 }),
      (looks) => {
      let shown: ProgressView | null = null;
      for (const [seen, heartbeat] of looks) {
        const next: ProgressView = nextView(shown, { status: seen, heartbeat });
        expect(next.percent).toBeGreaterThanOrEqual(0);
        expect(next.percent).toBeLessThanOrEqual(100);
        if (shown !== null) {
          for (const field of ['percent', 'bytesOnWire', 'bytesDone', 'bytesPlanned',
            'round'] as const) {
            expect(next[field]).toBeGreaterThanOrEqual(shown[field]);
          }
          expect(phases.indexOf(next.phase)).toBeGreaterThanOrEqual(phases.indexOf(shown.phase));
        }
        expect(progressLine(next, 100).length).toBeLessThan(100);
        shown = next;
      }
    }));
  });
  it('turns to compensating when the move is undone', () => {
    const copying = nextView(null, { status: statusOf('copy-memory', 60, null), heartbeat: null });
    const undone = nextView(copying, { status: statusOf('compensating', 0, null),
      heartbeat: null });
    expect(undone).toMatchObject({ phase: 'compensating', percent: 60 });
  });
});

const half = { version: 1, phase: 'memory', paused: false, round: 1, bytesPlanned: 2_000,
  bytesDone: 1_000, bytesOnWire: 900, diskBytesTotal: 0, diskBytesDone: 0, dirtyBytesPerSecond: 10,
  sendBytesPerSecond: 1_048_576, etaMs: 12_345, estimatedDowntimeMs: 8.25, convergence: '',
  mirrorMode: 'none' } as const;

describe('figures', () => {
  it('puts half of the bytes in the middle of the copying scale', () => {
    const size = { memoryBytes: 2_000, diskBytes: 0 };
    expect(copyPercent({ phase: 'copy-memory', progress: half, size })).toBe(49);
  });
  it('gives disks and memory their part of the bytes', () => {
    const size = { memoryBytes: 1_000, diskBytes: 3_000 };
    const disks = { ...half, diskBytesTotal: 600, diskBytesDone: 300 };
    expect(copyPercent({ phase: 'copy-disk', progress: disks, size })).toBe(4 + 90 * 0.375);
    expect(copyPercent({ phase: 'copy-memory', progress: half, size })).toBe(4 + 90 * 0.875);
  });
  it('takes the newer of heartbeat and query', () => {
    expect(laterProgress(half, { ...half, bytesOnWire: 1_000, round: 2 })?.round).toBe(2);
    expect(laterProgress({ ...half, bytesOnWire: 1_000, round: 2 }, half)?.round).toBe(2);
    expect(laterProgress(null, half)).toBe(half);
  });
  it('shows ETA, rates, round, estimated downtime', () => {
    const view = nextView(null, { status: statusOf('copy-memory', 4, half), heartbeat: null });
    expect(progressLine(view, null)).toMatch(
      new RegExp('49\\.0 % {2}copy-memory {2}ETA 12\\.3 s {2}1 MiB/s {2}dirty 10 B/s {2}'
        + 'round 1 {2}downtime ~8\\.3 ms'));
  });
  it.each([[0.25, '0.3 ms'], [999, '999 ms'], [1_000, '1.0 s'], [59_949, '59.9 s'], [59_960,
    '1 min 00 s'],
    [245_000, '4 min 05 s'], [7_380_000, '2 h 03 min']])('%d is %s', (ms, text) => {
    expect(formatMillis(ms)).toBe(text);
  });
});
