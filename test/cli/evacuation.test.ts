/** `novacron host evacuate|drain`, `novacron evacuation …` and `novacron rebalance --plan`. */
import { describe, expect, it } from 'vitest';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type { EvacuationOutcome, EvacuationRow } from '../../contracts/evacuation.ts';
import { CodedError, failureReport } from '../../contracts/failures.ts';
import { hostName, vmName } from '../../contracts/identity.ts';
import { gib } from '../../contracts/units.ts';
import { entryOf, evacuationViewOf, hostOf, novacron, scene, spec } from './fake-world.ts';

const rowOf = (name: string, more: Partial<EvacuationRow> = {}): EvacuationRow => ({
  vm: vmName(name), memoryBytes: gib, diskBytes: 0, state: 'waiting', target: null,
  migration: null, attempts: 0, failedCount: 0, startedAtMs: null, endedAtMs: null,
  retryAtMs: null, failure: null, refusals: [], ...more,
});
const moved = rowOf('a', {
  state: 'moved', target: hostName('h2'), startedAtMs: 0, endedAtMs: 4_000 });
const skipped = rowOf('b', {
  state: 'skipped',
  failure: failureReport('evacuation/no-target', 'h2: preflight/memory (full)') });
const outcomeOf = (more: Partial<EvacuationOutcome> = {}): EvacuationOutcome => ({
  version: 1, kind: 'completed', host: hostName('h1'), movedCount: 1, skipped: [], totalMs: 5_000,
  movesMs: 4_000, by: null, failure: null, ...more,
});

describe('host evacuate and drain', () => {
  it('hand over what was typed', async () => {
    const on = scene();
    const { code, last } = await novacron(on, 'host', 'drain', 'h1', '--to', 'h2,h3',
      '--concurrency', '4', '--bandwidth', '40MB', '--order', 'small-first', '--first', 'db,web',
      '--window', '22:00-06:30', '--post-copy', 'when-needed', '--request', 'q1', '--json');
    expect(code).toBe(0);
    expect(last).toMatchObject({ outcome: 'running', workflowId: 'evacuate/h1', request: 'q1' });
    expect(on.evacuations).toMatchObject([{ host: 'h1', request: 'q1', policy: {
      cordon: true, targets: ['h2', 'h3'], concurrency: 4, bandwidthBytesPerSecond: 40_000_000,
      order: 'small-first', first: ['db', 'web'],
      window: { fromMinute: 1_320, untilMinute: 390 }, move: { postCopy: 'when-needed' } } }]);
    await novacron(on, 'host', 'evacuate', 'h1');
    expect(on.evacuations[1]?.policy).toEqual(defaultEvacuationPolicy);
  });

  it.each([
    ['--concurrency', '0'], ['--concurrency', '999'], ['--window', '25:00-06:00'],
    ['--window', '6-7'], ['--to', 'h2,../x'], ['--first', 'A'], ['--order', 'random'],
    ['--bandwidth', 'fast'],
  ])('refuse %s %s before anything is started', async (...words) => {
    const on = scene();
    expect((await novacron(on, 'host', 'evacuate', 'h1', ...words)).code).toBe(2);
    expect(on.evacuations).toEqual([]);
  });

  it('follow it to its end: each VM once, then what is left and why', async () => {
    const on = scene({ evacuation: [
      evacuationViewOf({ rows: [rowOf('a'), rowOf('b')] }),
      new CodedError('temporal/unreachable', 'restarting'),
      evacuationViewOf({ rows: [moved, skipped] }), evacuationViewOf({ rows: [moved, skipped] }),
      evacuationViewOf({ rows: [moved, skipped], outcome: outcomeOf({ kind: 'partial',
        skipped: [{ vm: vmName('b'), failure: skipped.failure! }] }) }, 'completed'),
    ] });
    const { code, stderr, stdout } = await novacron(on, 'host', 'evacuate', 'h1', '--watch');
    expect(code).toBe(4);
    expect(stderr.match(/^a → h2 in 4.0 s$/gm)).toHaveLength(1);
    expect(stderr).toMatch(/0 of 2 moved {2}2 waiting {2}ETA: estimating/);
    expect(stdout).toMatch(/1 VMs are still on h1, 1 moved/);
    expect(stdout).toMatch(/b: No host takes the VM now .*h2: preflight\/memory \(full\)/);
  });

  it.each<[Partial<EvacuationOutcome>, number]>([
    [{}, 0], [{ kind: 'cancelled', by: 'ada' }, 5],
    [{ kind: 'failed', failure: failureReport('host/unknown', 'h1') }, 3],
  ])('end with the exit code of %j', async (more, code) => {
    const on = scene({ evacuation: [evacuationViewOf({ outcome: outcomeOf(more) }, 'completed')] });
    const seen = await novacron(on, 'host', 'evacuate', 'h1', '--watch', '--json');
    expect(seen.code).toBe(code);
    expect(seen.last).toMatchObject({ outcome: more.kind ?? 'completed', exitCode: code });
  });

  it('say that a terminated one goes on with the same command', async () => {
    const on = scene({ evacuation: [evacuationViewOf({}, 'terminated')] });
    const { code, stderr } = await novacron(on, 'host', 'evacuate', 'h1', '--watch');
    expect(code).toBe(5);
    expect(stderr).toMatch(/terminated; its moves end by themselves, and the same command goes on/);
  });
});

describe('evacuation', () => {
  it('shows the whole and each VM', async () => {
    const on = scene({ evacuation: [evacuationViewOf({ rows: [moved, skipped, rowOf('c')] })] });
    const { stdout } = await novacron(on, 'evacuation', 'show', 'h1');
    expect(stdout).toMatch(/66.7 % {2}moving {2}1 of 3 moved/);
    expect(stdout).toMatch(/^ {2}a → h2 in 4.0 s$/m);
    expect((await novacron(scene(), 'evacuation', 'show', 'h1')).code).toBe(3);
  });

  it('commands it', async () => {
    const on = scene();
    for (const word of ['pause', 'resume', 'cancel']) await novacron(on, 'evacuation', word, 'h1');
    await novacron(on, 'evacuation', 'set', 'h1', '--bandwidth', '5MB', '--concurrency', '3');
    expect(on.evacuationCommands).toEqual([
      { kind: 'pause' }, { kind: 'resume' }, { kind: 'cancel', by: 'ada' },
      { kind: 'set-bandwidth', bandwidthBytesPerSecond: 5_000_000 },
      { kind: 'set-concurrency', concurrency: 3 }]);
    expect((await novacron(on, 'evacuation', 'set', 'h1')).code).toBe(2);
  });
});

describe('rebalance --plan', () => {
  const facts = (name: string) => ({ ...hostOf(name).facts, memoryBytes: 8 * gib,
    machineTypes: [spec.machineType], features: ['direct-engine'], diskFreeBytes: 64 * gib });

  it('proposes, and starts nothing', async () => {
    const on = scene({
      hosts: [hostOf('h1', { facts: facts('h1') }), hostOf('h2', { facts: facts('h2') })],
      entries: ['a', 'b', 'c', 'd'].map((name) => entryOf({ vm: vmName(name),
        spec: { ...spec, name: vmName(name) } })),
    });
    const { code, last } = await novacron(on, 'rebalance', '--plan', '--json');
    expect(code).toBe(0);
    expect(last['moves']).toEqual([
      { vm: 'a', source: 'h1', target: 'h2' }, { vm: 'b', source: 'h1', target: 'h2' }]);
    expect(last['imbalanceAfter']).toBeLessThan(last['imbalanceBefore'] as number);
    expect((await novacron(on, 'rebalance', '--plan')).stdout)
      .toMatch(/novacron migrate a --to h2/);
    expect([on.started, on.proposals, on.evacuations]).toEqual([[], [], []]);
    expect((await novacron(on, 'rebalance')).code).toBe(2);
  });
});
