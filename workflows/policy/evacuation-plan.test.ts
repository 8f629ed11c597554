/** Tables of the pure decisions of an evacuation. */
import { describe, expect, it } from 'vitest';
import { evacuationProgress } from '../../contracts/evacuation-progress.ts';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type {
  EvacuationCommand, EvacuationPolicy, EvacuationRow, EvacuationStatus, HostSurvey, SurveyedVm,
} from '../../contracts/evacuation.ts';
import { failureReport } from '../../contracts/failures.ts';
import type { FailureCode } from '../../contracts/failures.ts';
import { hostName, migrationId, requestId, vmName } from '../../contracts/identity.ts';
import type { MigrationOutcome, MigrationStatus } from '../../contracts/migration.ts';
import type { PlacementHost } from '../../contracts/placement.ts';
import { gib } from '../../contracts/units.ts';
import { evacuationPolicyAfter, evacuationRefusal } from './evacuation-command.ts';
import { evacuationDetails } from './evacuation-details.ts';
import {
  bandwidthPart, inOrder, planWave, rowAfterMove, rowsAfterSurvey,
} from './evacuation-plan.ts';
import { nextOpeningMs } from './move-window.ts';

const [h1, h2, h3] = [hostName('h1'), hostName('h2'), hostName('h3')];
const policy: EvacuationPolicy = defaultEvacuationPolicy;
const vmOf = (name: string, more: Partial<SurveyedVm> = {}): SurveyedVm => ({
  vm: vmName(name), host: h1, memoryBytes: gib, diskBytes: 0, machineType: 'pc-i440fx-7.2',
  segments: ['lab'], desired: 'running', migration: null, ...more,
});
const hostOf = (host: typeof h1, more: Partial<PlacementHost> = {}): PlacementHost => ({
  host, cordoned: false, silent: false, segments: ['lab'], machineTypes: ['pc-i440fx-7.2'],
  cpuFlags: [], tracks: true, memoryBytes: 16 * gib, memoryFreeBytes: 16 * gib,
  diskFreeBytes: gib, ...more,
});
const surveyOf = (...vms: SurveyedVm[]): HostSurvey => ({
  vms, hosts: [hostOf(h1), hostOf(h2), hostOf(h3)] });
const rowOf = (name: string, more: Partial<EvacuationRow> = {}): EvacuationRow => ({
  vm: vmName(name), memoryBytes: gib, diskBytes: 0, state: 'waiting', target: null,
  migration: null, attempts: 0, failedCount: 0, startedAtMs: null, endedAtMs: null,
  retryAtMs: null, failure: null, refusals: [], ...more,
});
const states = (rows: readonly EvacuationRow[]): Record<string, string> =>
  Object.fromEntries(rows.map(({ vm, state }) => [vm, state]));

describe('a survey', () => {
  it('brings new VMs in and tells those that are busy, stopped or gone', () => {
    const open = migrationId(vmName('busy'), requestId('other'));
    const rows = rowsAfterSurvey([
      rowOf('gone'), rowOf('moving', { state: 'moving' }), rowOf('moved', { state: 'moved' }),
      rowOf('kept', { state: 'skipped', failure: failureReport('preflight/layout', 'x') }),
      rowOf('full', { state: 'skipped', failure: failureReport('evacuation/no-target', 'x') }),
      rowOf('back', { state: 'moved', attempts: 2 }),
      rowOf('hurt', { state: 'skipped', failure: failureReport('migration/damaged', 'x') }),
    ], surveyOf(vmOf('new'), vmOf('busy', { migration: open }), vmOf('kept'), vmOf('full'),
      vmOf('off', { desired: 'stopped' }), vmOf('moving', { migration: open }), vmOf('back')));
    expect(states(rows)).toEqual({
      gone: 'left', moving: 'moving', moved: 'moved', kept: 'skipped', full: 'waiting',
      back: 'waiting', hurt: 'skipped', new: 'waiting', busy: 'busy', off: 'skipped',
    });
    expect(rows.find(({ vm }) => vm === 'back')?.attempts, 'ids are not used twice').toBe(2);
  });
});

describe('a wave', () => {
  it('begins with the named, then by size, then by name', () => {
    const rows = [rowOf('b'), rowOf('a'), rowOf('big', { memoryBytes: 2 * gib }), rowOf('late')];
    const order = (more: Partial<EvacuationPolicy>): string[] =>
      inOrder(rows, { ...policy, ...more }).map(({ vm }) => vm);
    expect(order({})).toEqual(['big', 'a', 'b', 'late']);
    expect(order({ order: 'small-first' })).toEqual(['a', 'b', 'late', 'big']);
    expect(order({ order: 'name' })).toEqual(['a', 'b', 'big', 'late']);
    expect(order({ first: [vmName('late'), vmName('b')] })).toEqual(['late', 'b', 'big', 'a']);
  });

  it('skips what no host takes, with the reason of each, and leaves out what is not due', () => {
    const survey = surveyOf(vmOf('a'), vmOf('b', { segments: ['dmz'] }), vmOf('c'), vmOf('d'));
    const { moves, rows } = planWave({
      survey, policy: { ...policy, targets: [h2] }, nowMs: 1_000,
      rows: [rowOf('a'), rowOf('b'), rowOf('c', { retryAtMs: 1_001 }),
        rowOf('d', { refusals: [{ host: h2, code: 'preflight/cpu', detail: 'no avx2' }] })],
    });
    expect(moves).toEqual([{ vm: 'a', source: h1, target: h2 }]);
    expect(states(rows)).toEqual({ a: 'waiting', b: 'skipped', c: 'waiting', d: 'skipped' });
    expect(rows[1]?.failure).toMatchObject({
      code: 'evacuation/no-target', detail: 'h2: preflight/segment (it does not carry dmz)' });
    expect(rows[3]?.failure?.detail).toBe('h2: preflight/cpu (no avx2)');
  });

  it('keeps the room of moves that the ledger does not know yet', () => {
    const survey: HostSurvey = { ...surveyOf(vmOf('on-its-way'), vmOf('next')),
      hosts: [hostOf(h1), hostOf(h2, { memoryFreeBytes: 2 * gib })] };
    const rows = [rowOf('on-its-way', { state: 'moving', target: h2 }), rowOf('next')];
    expect(planWave({ rows, survey, policy, nowMs: 0 }).moves).toEqual([]);
    expect(planWave({ rows: [rowOf('next')], survey, policy, nowMs: 0 }).moves).toHaveLength(1);
  });
});

describe('the end of a move', () => {
  const after = (code: FailureCode, row = rowOf('a', { state: 'moving', target: h2 })) =>
    rowAfterMove(row, failureReport(code, 'why'), 10_000);

  it.each<[FailureCode, string]>([
    ['migration/open', 'busy'], ['migration/same-host', 'busy'], ['preflight/layout', 'skipped'],
    ['vm/stopped-itself', 'skipped'], ['migration/not-converging', 'skipped'],
    ['preflight/memory', 'waiting'], ['host/cordoned', 'waiting'], ['link/lost', 'waiting'],
    ['host/unreachable', 'waiting'], ['internal', 'waiting'],
  ])('%s: %s', (code, state) => {
    expect(after(code)).toMatchObject({ state, endedAtMs: 10_000, failure: { code } });
  });

  it('excludes a target that refused; what may pass is tried later, five times in all', () => {
    expect(after('preflight/memory').refusals).toEqual([
      { host: h2, code: 'preflight/memory', detail: 'why' }]);
    expect(after('link/lost').refusals).toEqual([]);
    let row = rowOf('a', { state: 'moving', target: h2 });
    const waits: (number | null)[] = [];
    for (let tries = 0; tries < 5; tries += 1) {
      row = after('link/lost', row);
      waits.push(row.retryAtMs);
    }
    expect(waits.slice(0, 4)).toEqual([15_000, 20_000, 30_000, 50_000]);
    expect(row.state).toBe('skipped');
  });

  it('takes another one\'s cancel as the wish that it stays', () => {
    const cancelled = { kind: 'cancelled', by: 'ada' } as MigrationOutcome;
    expect(rowAfterMove(rowOf('a'), cancelled, 1)).toMatchObject({
      state: 'skipped', failure: { code: 'migration/cancelled', detail: 'by ada' } });
    const completed = { kind: 'completed' } as MigrationOutcome;
    expect(rowAfterMove(rowOf('a'), completed, 1).state).toBe('moved');
    const damaged = {
      kind: 'damaged', exactness: { kind: 'damaged', detail: '1 page' },
    } as unknown as MigrationOutcome;
    expect(rowAfterMove(rowOf('a'), damaged, 1)).toMatchObject({
      state: 'skipped', failure: { code: 'migration/damaged', detail: '1 page' } });
  });
});

describe('the window', () => {
  const at = (text: string): number => Date.parse(`2026-03-01T${text}Z`);
  const night = { fromMinute: 22 * 60, untilMinute: 6 * 60 };
  const noon = { fromMinute: 12 * 60, untilMinute: 13 * 60 + 30 };
  it.each([
    [noon, '12:00:00', null], [noon, '13:29:59', null], [noon, '11:00:00', '2026-03-01T12:00:00Z'],
    [noon, '13:30:00', '2026-03-02T12:00:00Z'], [night, '23:00:00', null],
    [night, '05:59:59', null], [night, '06:00:00', '2026-03-01T22:00:00Z'],
    [null, '06:00:00', null],
    [{ fromMinute: 5, untilMinute: 5 }, '01:00:00', null],
  ])('%j at %s opens %s', (window, now, opens) => {
    expect(nextOpeningMs(window, at(now))).toBe(opens === null ? null : Date.parse(opens));
  });
});

describe('bandwidth', () => {
  it('is shared by the moves that may run, so the last ones have more', () => {
    const rows = (count: number): EvacuationRow[] =>
      Array.from({ length: count }, (_, index) => rowOf(`v${index}`));
    const limited = { bandwidthBytesPerSecond: 12_000_000, concurrency: 3 };
    expect([5, 3, 2, 1, 0].map((count) => bandwidthPart(limited, rows(count))))
      .toEqual([4_000_000, 4_000_000, 6_000_000, 12_000_000, 12_000_000]);
    expect(bandwidthPart({ ...limited, bandwidthBytesPerSecond: 0 }, rows(3))).toBe(0);
  });
});

describe('commands', () => {
  const moving = { phase: 'moving', cancelled: false } as const;
  it.each<[EvacuationCommand, string | null]>([
    [{ kind: 'pause' }, null], [{ kind: 'cancel', by: 'ada' }, null],
    [{ kind: 'set-concurrency', concurrency: 4 }, null],
    [{ kind: 'set-concurrency', concurrency: 0 }, 'input/invalid'],
    [{ kind: 'set-concurrency', concurrency: 1_000 }, 'input/invalid'],
    [{ kind: 'set-bandwidth', bandwidthBytesPerSecond: -1 }, 'input/invalid'],
    [{ kind: 'cancel', by: 'x'.repeat(201) }, 'input/invalid'],
  ])('%j: %s', (command, code) => {
    expect(evacuationRefusal(command, moving)?.code ?? null).toBe(code);
  });

  it('are refused once it is cancelled or over', () => {
    expect(evacuationRefusal({ kind: 'pause' }, { ...moving, cancelled: true })?.code)
      .toBe('migration/cancelled');
    expect(evacuationRefusal({ kind: 'resume' }, { phase: 'done', cancelled: false })?.code)
      .toBe('evacuation/unknown');
    expect(evacuationPolicyAfter(policy, { kind: 'set-concurrency', concurrency: 7 }).concurrency)
      .toBe(7);
  });
});

describe('progress', () => {
  const move = migrationId(vmName('b'), requestId('r.1'));
  const status = (
    rows: EvacuationRow[], more: Partial<EvacuationStatus> = {},
  ): EvacuationStatus => ({
    version: 1, host: h1, request: requestId('r'), phase: 'moving', paused: false, policy, rows,
    opensAtMs: null, waitingFor: null, startedAtMs: 0, cancelledBy: null, outcome: null, ...more,
  });
  const rows = [
    rowOf('a', { state: 'moved', startedAtMs: 0, endedAtMs: 10_000 }),
    rowOf('b', { state: 'moving', startedAtMs: 10_000, migration: move }),
    rowOf('c', { memoryBytes: 2 * gib }),
  ];
  const half = { percent: 50, progress: { etaMs: 5_000 } } as MigrationStatus;

  it('weighs by size and plays the rest of it: the last one waits for a free lane', () => {
    const seen = evacuationProgress(status(rows), new Map([[move, half]]), 15_000);
    expect(seen).toMatchObject({ percent: 37.5, counts: { moved: 1, moving: 1, waiting: 1 } });
    expect(seen.etaMs, 'two at a time').toBe(20_000);
    const one = status(rows, { policy: { ...policy, concurrency: 1 } });
    expect(evacuationProgress(one, new Map([[move, half]]), 15_000).etaMs).toBe(25_000);
  });

  it('knows no ETA while it is paused, the window is closed, or nothing was measured', () => {
    for (const more of [{ paused: true }, { opensAtMs: 5 }, { rows: [rowOf('c')] }]) {
      expect(evacuationProgress(status(rows, more), new Map(), 15_000).etaMs).toBeNull();
    }
  });

  it('is read in Temporal\'s UI', () => {
    const text = evacuationDetails(status([...rows, rowOf('d', {
      state: 'skipped', failure: failureReport('preflight/layout', 'vfio') })]));
    expect(text).toContain('4 VMs: 1 moved, 1 moving, 1 waiting, 0 busy, 0 left, 1 skipped');
    expect(text).toContain('- `d` **skipped**: The engine cannot move this layout exactly');
  });
});
