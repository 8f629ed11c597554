/** Tables of the pure decisions that workflows make. */
import { describe, expect, it } from 'vitest';
import { failureReport } from '../../contracts/failures.ts';
import type { FailureCode } from '../../contracts/failures.ts';
import { hostName, migrationId, requestId, vmName } from '../../contracts/identity.ts';
import { limits } from '../../contracts/limits.ts';
import { neverFalling, percentOf, refinedPhase } from '../../contracts/migration-percent.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type {
  MigrationPhase, MigrationStatus, SessionCommand, SessionProgress,
} from '../../contracts/migration.ts';
import { policyAfter, refusalOf } from './accept-command.ts';
import type { CommandContext } from './accept-command.ts';
import { currentDetails } from './current-details.ts';
import { attemptFits, carryOnWaitMs, commandFits, nextLookMs, silenceMs } from './history-budget.ts';
import {
  runsOnAfter, unknownFigures, wayAfter, wayOfEarlierRun, withLateFigures,
} from './outcome.ts';

const progress = (fields: Partial<SessionProgress>): SessionProgress => ({
  version: 1, phase: 'memory', paused: false, round: 0, bytesPlanned: 100, bytesDone: 0,
  bytesOnWire: 0, diskBytesTotal: 0, diskBytesDone: 0, dirtyBytesPerSecond: 0,
  sendBytesPerSecond: 0, etaMs: null, estimatedDowntimeMs: null, convergence: '',
  mirrorMode: 'none', ...fields,
});

describe('percent', () => {
  const even = { memoryBytes: 50, diskBytes: 50 };
  const table: readonly [MigrationPhase, SessionProgress | null, typeof even | null, number][] = [
    ['preflight', null, null, 0],
    ['prepare-target', null, even, 2],
    ['copy-disk', null, even, 4],
    ['copy-disk', progress({ diskBytesTotal: 50, diskBytesDone: 25 }), even, 26.5],
    ['copy-disk', progress({ diskBytesTotal: 50, diskBytesDone: 50 }), even, 49],
    ['copy-memory', null, even, 49],
    ['copy-memory', progress({ bytesDone: 50 }), even, 71.5],
    ['copy-memory', progress({ bytesDone: 500 }), even, 94],
    ['copy-memory', progress({ bytesDone: 50 }), { memoryBytes: 50, diskBytes: 0 }, 49],
    ['verify', null, even, 96],
    ['done', null, even, 100],
  ];
  it.each(table)('%s %#', (phase, seen, size, expected) => {
    expect(percentOf(phase, seen, size)).toBe(expected);
  });
  it('never falls and never leaves the scale', () => {
    expect(neverFalling(40, 30)).toBe(40);
    expect(neverFalling(40, 41.26)).toBe(41.3);
    expect(neverFalling(40, 400)).toBe(100);
  });
  it('knows the session\'s phase better than the workflow', () => {
    expect(refinedPhase('copy-memory', progress({ phase: 'post-copy' }))).toBe('post-copy');
    expect(refinedPhase('verify', progress({ phase: 'switchover' }))).toBe('verify');
  });
});

describe('the text of a move in the UI', () => {
  const status: MigrationStatus = {
    version: 1, phase: 'copy-disk', vm: vmName('db'), source: hostName('h1'),
    target: hostName('h2'), engine: 'direct', percent: 26.5, pointOfNoReturnPassed: false,
    policy: defaultPolicy, size: null, progress: null,
    waitingFor: { what: 'the disks of db', sinceMs: 0 }, outcome: null,
  };
  it('says who goes where, how far it is, and what is waited for', () => {
    expect(currentDetails(status).split('\n\n')).toEqual([
      '`db`: `h1` → `h2`', 'phase **copy-disk**, 26.5 %', 'waits for the disks of db',
    ]);
  });
  it('shows disks, memory, rates, what is foreseen, and why the guest is slow', () => {
    const text = currentDetails({ ...status, progress: progress({
      diskBytesTotal: 1 << 30, diskBytesDone: 1 << 29, round: 2, paused: true, bytesDone: 50,
      bytesOnWire: 1024, sendBytesPerSecond: 1 << 20, dirtyBytesPerSecond: 2048.4, etaMs: 12_400,
      estimatedDowntimeMs: 31.4, convergence: 'the guest writes to data faster than the link',
    }) });
    expect(text.split('\n\n').slice(2, -1)).toEqual([
      'disks: 512 MiB of 1 GiB',
      'round 2 (paused), 50 B of 100 B, 1 KiB on the wire, 1 MiB/s sent, 2 KiB/s dirtied',
      'when last asked: 12 s left, downtime of 31 ms foreseen',
      'convergence: the guest writes to data faster than the link',
    ]);
  });
  it('ends with where the VM is', () => {
    const text = currentDetails({ ...status, outcome: {
      version: 1, kind: 'failed', migration: migrationId(vmName('db'), requestId('r1')),
      vm: vmName('db'), source: hostName('h1'), target: hostName('h2'), runsOn: hostName('h1'),
      failure: failureReport('disk/full', 'data'), compensationFailures: [],
    } });
    expect(text).toMatch(/^`db`: `h1` → `h2`\n\n\*\*failed\*\*: A disk is full .*runs on h1\.$/s);
  });
});

describe('commands', () => {
  const context = (fields: Partial<CommandContext> = {}): CommandContext => ({
    phase: 'copy-memory', pointOfNoReturnPassed: false, cancelled: false,
    policy: { ...defaultPolicy, postCopy: 'when-needed' }, historyEvents: 50, silentForMs: 0,
    ...fields,
  });
  const cancel: SessionCommand = { kind: 'cancel', by: 'me' };
  const table: readonly [SessionCommand, Partial<CommandContext>, FailureCode | null][] = [
    [{ kind: 'pause' }, {}, null],
    [{ kind: 'pause' }, { phase: 'prepare-target' }, 'input/invalid'],
    [{ kind: 'pause' }, { phase: 'verify', pointOfNoReturnPassed: true }, 'migration/past-return'],
    [{ kind: 'pause' }, { cancelled: true }, 'migration/cancelled'],
    [{ kind: 'pause' }, { historyEvents: 140 }, 'input/invalid'],
    [{ kind: 'resume' }, { phase: 'copy-disk' }, null],
    [cancel, {}, null],
    [cancel, { historyEvents: 1_000 }, null],
    [cancel, { historyEvents: 1_000, cancelled: true }, 'migration/cancelled'],
    [cancel, { silentForMs: 1 }, null],
    [{ kind: 'pause' }, { silentForMs: 1 }, 'migration/not-here'],
    [cancel, { cancelled: true }, null],
    [cancel, { phase: 'compensating' }, null],
    [cancel, { pointOfNoReturnPassed: true }, 'migration/past-return'],
    [cancel, { phase: 'done' }, 'migration/past-return'],
    [{ kind: 'cancel', by: 7 as never }, {}, 'input/invalid'],
    [{ kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 }, { phase: 'preflight' }, null],
    [{ kind: 'set-bandwidth', bandwidthBytesPerSecond: -1 }, {}, 'input/invalid'],
    [{ kind: 'set-bandwidth', bandwidthBytesPerSecond: NaN }, {}, 'input/invalid'],
    [{ kind: 'set-downtime-budget', downtimeBudgetMs: 0 }, {}, 'input/invalid'],
    [{ kind: 'set-downtime-budget', downtimeBudgetMs: 600_001 }, {}, 'input/invalid'],
    [{ kind: 'set-downtime-budget', downtimeBudgetMs: 50 }, {}, null],
    [{ kind: 'post-copy-now' }, {}, null],
    [{ kind: 'post-copy-now' }, { phase: 'copy-disk' }, 'input/invalid'],
    [{ kind: 'post-copy-now' }, { policy: defaultPolicy }, 'input/invalid'],
  ];
  it.each(table)('%o %o → %s', (command, fields, code) => {
    expect(refusalOf(command, context(fields))?.code ?? null).toBe(code);
  });
  it('change the policy of later steps', () => {
    expect(policyAfter(defaultPolicy, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 9 }))
      .toEqual({ ...defaultPolicy, bandwidthBytesPerSecond: 9 });
    expect(policyAfter(defaultPolicy, { kind: 'pause' })).toBe(defaultPolicy);
  });
});

describe('the history budget', () => {
  it('looks four times, ever later, and not when the history is long', () => {
    expect([0, 1, 2, 3, 4].map((count) => nextLookMs(count, 40)))
      .toEqual([5_000, 20_000, 80_000, 320_000, null]);
    expect(nextLookMs(0, limits.migrationHistoryEventsMax - 80)).toBeNull();
  });
  it('begins a copy afresh while there is room for it', () => {
    expect([60, 93, 94].map(attemptFits)).toEqual([true, true, false]);
  });
  it('goes on as a new run at once, then ever later', () => {
    expect([1, 3, 6, 9, 18, 60].map(carryOnWaitMs)).toEqual([0, 0, 2_000, 4_000, 30_000, 30_000]);
  });
  it('leaves a silent session alone, ever longer', () => {
    expect([0, 1, 2, 3, 7, 50].map(silenceMs))
      .toEqual([0, 5_000, 10_000, 20_000, 300_000, 300_000]);
  });
  it('keeps room for a cancel', () => {
    expect(commandFits(60)).toBe(true);
    expect(commandFits(limits.migrationHistoryEventsMax - 62)).toBe(false);
  });
});

describe('late figures', () => {
  const figures = { ...unknownFigures, bytesOnWire: 500, memoryBytesSent: 400, downtimeMs: 8 };
  it('count what is sent after the hand-over', () => {
    expect(withLateFigures(figures, { bytesOnWire: 900, memoryBytesSent: 700 }))
      .toEqual({ ...figures, bytesOnWire: 900, memoryBytesSent: 700 });
  });
  it.each([null, undefined, { bytesOnWire: 0, memoryBytesSent: 0 }])(
    'stay where nothing more is known: %j', (late) => {
      expect(withLateFigures(figures, late)).toEqual(figures);
    });
});

describe('ways', () => {
  it('follow from the session\'s end', () => {
    expect(wayAfter({ kind: 'cancelled', by: 'me' }))
      .toMatchObject({ kind: 'back', failure: { code: 'migration/cancelled', detail: 'me' } });
    const failure = failureReport('engine/failed', 'x');
    expect(wayAfter({ kind: 'failed', failure, resumed: true })).toEqual({ kind: 'back', failure });
  });
  it.each([
    ['none', null], ['preparing', null], ['unsettled', 'back'], ['committed', 'forward'],
    ['aborted', 'back'], ['reverted', 'back'],
  ] as const)('%s in the ledger → %s', (own, kind) => {
    expect(wayOfEarlierRun(own)?.kind ?? null).toBe(kind);
  });
  it('know where the VM is', () => {
    const host = hostName('a');
    expect(runsOnAfter(failureReport('vm/stopped-itself', ''), host)).toBeNull();
    expect(runsOnAfter(failureReport('engine/failed', ''), host)).toBe(host);
  });
});
