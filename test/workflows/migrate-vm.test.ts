/** `migrateVm` against a time-skipping server, a real ledger and hosts that keep books. */
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { plainReport } from '../../contracts/exactness.ts';
import type { ExactnessReport } from '../../contracts/exactness.ts';
import { CodedError } from '../../contracts/failures.ts';
import type { FailureCode } from '../../contracts/failures.ts';
import { hostName, migrationId, requestId } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import { limits } from '../../contracts/limits.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type { MigrateVmInput, MigrationOutcome, MigrationPolicy } from '../../contracts/migration.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { startMigration } from '../../payloads/migration-client.ts';
import { FakeDatacentre } from './support/fake-datacentre.ts';
import { allWorkers, timeSkippingBench } from './support/workbench.ts';
import type { Bench, Running } from './support/workbench.ts';

const bench: Bench = await timeSkippingBench();
if (bench.env === null) console.warn(`skipped: time-skipped workflow tests need ${bench.missing}`);
const [hostA, hostB, hostC] = [hostName('host-a'), hostName('host-b'), hostName('host-c')];

describe.skipIf(bench.env === null)('migrateVm', () => {
  const env = bench.env!;
  let centre: FakeDatacentre;
  let workers: Running;
  let vm: VmName;
  let vmNumber = 0;

  afterAll(() => env.teardown());
  beforeEach(async () => {
    centre = await FakeDatacentre.open();
    workers = await allWorkers({ env, centre });
    vmNumber += 1;
    vm = await centre.runningVm(`vm-${vmNumber}`, hostA);
  });
  afterEach(async () => {
    await workers.stop();
    await centre.close();
  });

  const input = (request: string, policy: Partial<MigrationPolicy> = {}, target = hostB): MigrateVmInput => ({
    version: 1, vm, target, request: requestId(request), policy: { ...defaultPolicy, ...policy },
  });
  const move = async (request: string, policy: Partial<MigrationPolicy> = {}): Promise<MigrationOutcome> => {
    const { handle } = await startMigration(env.client, input(request, policy));
    return handle.result();
  };
  const historyLength = async (request: string): Promise<number> => {
    const { historyLength: length } =
      await env.client.workflow.getHandle(migrationId(vm, requestId(request))).describe();
    return length;
  };

  it('moves the VM, ends the ledger migration, and stays below 150 events', async () => {
    const outcome = await move('r1');
    expect(outcome).toMatchObject({
      kind: 'completed', source: hostA, target: hostB, epochBefore: 1, epochAfter: 2, warnings: [],
      digest: 'd1'.repeat(16),
    });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostB, epoch: 2 });
    expect(centre.sessions.size).toBe(0);
    expect(await historyLength('r1')).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
  });

  it('leaves a damaged VM to its operator, whoever asks, and settles when that is decided', async () => {
    const exactness: ExactnessReport = {
      ...plainReport('exact', '2 pages of memory arrived wrong'), kind: 'damaged', damagedPageCount: 2,
    };
    centre.damage = exactness;
    expect(await move('r1')).toMatchObject({ kind: 'damaged', source: hostA, target: hostB, exactness });
    expect(await centre.entry(vm)).toMatchObject({ phase: 'unsettled', owner: hostB });
    expect(centre.calls).not.toContain(`${hostA} releaseSource`);
    // The next request finds a move that nobody drives, and leaves it as it is.
    expect(await move('r2')).toMatchObject({ kind: 'failed', failure: { code: 'migration/open' } });
    expect(centre.calls).not.toContain(`${hostA} releaseSource`);
    const request = requestId('c1');
    const { outcome } = await runLifecycle(env.client, {
      step: 'resolve', input: { version: 1, vm, request, choice: 'accept' } });
    expect(outcome).toMatchObject({ kind: 'completed', host: hostB, runState: 'running' });
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostB });
    expect(centre.calls).toContain(`${hostA} releaseSource`);
    const again = await runLifecycle(env.client, {
      step: 'resolve', input: { version: 1, vm, request: requestId('c2'), choice: 'cold' } });
    expect(again.outcome).toMatchObject({ kind: 'failed', failure: { code: 'migration/unknown' } });
  });

  it('carries the report of the check in its outcome', async () => {
    centre.damage = plainReport('unverified', 'the check did not end');
    expect(await move('r1')).toMatchObject({ kind: 'completed', exactness: centre.damage });
  });

  const before: readonly string[] = [
    'inspectVm', 'checkTarget', 'prepareTarget', 'copyMemoryAndSwitchOver', 'switchover',
  ];
  it.each(before)('undoes everything when %s fails for ever', async (step) => {
    centre.faults.set(step, () => { throw new CodedError('engine/failed', `${step} is broken`); });
    const outcome = await move('r1', { deadlineMs: 60_000 });
    expect(outcome).toMatchObject({
      kind: 'failed', runsOn: hostA, compensationFailures: [], failure: { code: 'engine/failed' },
    });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostA });
    expect(centre.prepared.size).toBe(0);
    expect(await historyLength('r1')).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
    centre.faults.clear();
    expect(await move('r2')).toMatchObject({ kind: 'completed' });
  });

  it('copies afresh when a runner is started anew, and never for ever', async () => {
    let losses = 0;
    const lose = (countMax: number) => () => {
      losses += 1;
      if (losses <= countMax) throw new CodedError('runner/session-lost', `loss ${losses}`);
    };
    centre.disks = 1;
    vm = await centre.runningVm(`${vm}-lucky`, hostA);
    centre.faults.set('copyMemoryAndSwitchOver', lose(2));
    expect(await move('r1')).toMatchObject({ kind: 'completed' });
    expect(losses).toBe(3);
    expect(await historyLength('r1')).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
    vm = await centre.runningVm(`${vm}-unlucky`, hostA);
    losses = 0;
    centre.faults.set('copyMemoryAndSwitchOver', lose(99));
    const last = limits.migrationAttemptCountMax;
    expect(await move('r1')).toMatchObject({
      kind: 'failed', failure: { code: 'runner/session-lost', detail: `loss ${last}` }, runsOn: hostA });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
    expect(centre.prepared.has(`${hostB}/${vm}`)).toBe(false);
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostA });
  });

  it('goes on as a new run after more faults than fit one history, with what it was told', async () => {
    centre.disks = 1;
    vm = await centre.runningVm(`${vm}-often`, hostA);
    let losses = 0;
    const policies: MigrationPolicy[] = [];
    centre.faults.set('copyMemoryAndSwitchOver', (step) => {
      losses += 1;
      policies.push((step as unknown as { policy: MigrationPolicy }).policy);
      if (losses <= 7) throw new CodedError('runner/session-lost', `loss ${losses}`);
    });
    expect(await move('r1', { downtimeBudgetMs: 77 })).toMatchObject({ kind: 'completed', source: hostA });
    expect(losses).toBe(8);
    expect(new Set(policies.map(({ downtimeBudgetMs }) => downtimeBudgetMs))).toEqual(new Set([77]));
    const left = policies.map(({ deadlineMs }) => deadlineMs);
    expect(left).toEqual(left.toSorted((a, b) => b - a));
    expect(centre.calls.filter((call) => call.endsWith('checkTarget'))).toHaveLength(1);
    expect(await historyLength('r1')).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
    expect(centre.whereRuns(vm)).toEqual([hostB]);
  });

  it('undoes what an earlier run has prepared when the next one fails at once', async () => {
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      if (centre.calls.filter((call) => call.endsWith('copyMemoryAndSwitchOver')).length === 3) {
        centre.faults.set('inspectVm', () => { throw new CodedError('engine/failed', 'odd'); });
      }
      throw new CodedError('runner/session-lost', 'again');
    });
    expect(await move('r1', { deadlineMs: 60_000 })).toMatchObject({
      kind: 'failed', failure: { code: 'engine/failed' }, runsOn: hostA, compensationFailures: [] });
    expect(centre.prepared.size).toBe(0);
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostA });
  });

  it('tells the first reason when the migration has ended before a fresh copy', async () => {
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      centre.faults.set('prepareTarget', () => {
        throw new CodedError('migration/cancelled', 'it is not open in the ledger');
      });
      throw new CodedError('runner/session-lost', 'in the blackout');
    });
    expect(await move('r1')).toMatchObject({
      kind: 'failed', failure: { code: 'runner/session-lost', detail: 'in the blackout' } });
  });

  it('undoes everything when the disk fails for ever', async () => {
    centre.disks = 1;
    vm = await centre.runningVm(`${vm}-disk`, hostA);
    centre.faults.set('copyDisk', () => { throw new CodedError('disk/full', 'target'); });
    expect(await move('r1')).toMatchObject({ kind: 'failed', failure: { code: 'disk/full' }, runsOn: hostA });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
    expect(centre.prepared.size).toBe(0);
  });

  it.each<FailureCode>(['preflight/memory', 'preflight/segment', 'host/cordoned'])(
    'refuses with %s before anything moves', async (code) => {
      centre.faults.set('checkTarget', () => { throw new CodedError(code, 'named reason'); });
      expect(await move('r1')).toMatchObject({
        kind: 'failed', failure: { code, detail: 'named reason' }, runsOn: hostA,
      });
      expect(centre.calls).not.toContain(`${hostB} prepareTarget`);
      expect((await centre.entry(vm))?.migration).toBeNull();
    });

  it('names an unknown VM, an unknown host and the same host', async () => {
    const known = vm;
    expect(await (await startMigration(env.client, { ...input('u1'), target: hostName('nowhere') }))
      .handle.result()).toMatchObject({ kind: 'failed', failure: { code: 'host/unknown' } });
    expect(await (await startMigration(env.client, input('u2', {}, hostA))).handle.result())
      .toMatchObject({ kind: 'failed', failure: { code: 'migration/same-host' }, runsOn: hostA });
    vm = `${vm}-none` as VmName;
    expect(await move('u3')).toMatchObject({ kind: 'failed', failure: { code: 'vm/unknown' }, source: null });
    vm = known;
  });

  it('goes forward when verify and release fail for a while, and warns when release never works', async () => {
    let verifies = 0;
    centre.faults.set('verifyTarget', () => {
      verifies += 1;
      if (verifies < 4) throw new CodedError('link/lost', 'again');
    });
    centre.faults.set('releaseSource', () => { throw new CodedError('vmm/protocol', 'odd'); });
    expect(await move('r1')).toMatchObject({
      kind: 'completed', warnings: [{ code: 'vmm/protocol' }],
    });
    // The fifth is the look behind Settle.
    expect(verifies).toBe(5);
    expect(centre.whereRuns(vm)).toEqual([hostB]);
  });

  it('counts what post-copy sent after the hand-over', async () => {
    centre.late = { bytesOnWire: 9_000_000, memoryBytesSent: 8_000_000 };
    const ended = await move('late').finally(() => { centre.late = null; });
    expect(ended).toMatchObject({
      kind: 'completed', figures: { bytesOnWire: 9_000_000, memoryBytesSent: 8_000_000 },
    });
  });

  it('says where the VM runs when the target cannot be verified', async () => {
    centre.faults.set('verifyTarget', () => { throw new CodedError('vmm/gone', 'target'); });
    expect(await move('r1')).toMatchObject({ kind: 'failed', failure: { code: 'vmm/gone' }, runsOn: hostB });
  });

  it('records compensations that fail', async () => {
    centre.faults.set('copyMemoryAndSwitchOver', () => { throw new CodedError('engine/tracking', 'x'); });
    centre.faults.set('discardTarget', () => { throw new CodedError('vmm/protocol', 'stuck'); });
    const outcome = await move('r1');
    expect(outcome).toMatchObject({
      kind: 'failed', failure: { code: 'engine/tracking' },
      compensationFailures: [{ code: 'vmm/protocol', detail: 'discardTarget: stuck' }],
    });
    expect(centre.calls).toContain(`${hostA} abortSource`);
  });

  it('takes the Commit that came before its session died', async () => {
    centre.faults.set('started', () => { throw new CodedError('link/refused', 'died after Started'); });
    expect(await move('r1')).toMatchObject({ kind: 'completed', epochAfter: 2 });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
  });

  it.each(['started', 'verifyTarget', 'releaseSource'])(
    'tells a VM that was booted anew at the target as what it is (%s)', async (moment) => {
      let isDone = false;
      centre.faults.set(moment, async () => {
        if (!isDone) await centre.bootAnew(vm);
        isDone = true;
      });
      const outcome = await move('r1');
      // After the Settle the move is over, whatever becomes of the VM.
      expect(outcome).toMatchObject(moment === 'releaseSource' ? { kind: 'completed' } : {
        kind: 'failed', failure: { code: 'vm/memory-lost' }, runsOn: hostB,
      });
      expect(centre.whereRuns(vm)).toEqual([hostB]);
      expect(centre.calls).toContain(`${hostA} releaseSource`);
      expect(await historyLength('r1')).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
    });

  it.each<[string, (now: FakeDatacentre) => Promise<void> | void, object]>([
    ['is booted anew', async (now) => {
      if (now.since === null) await now.bootAnew(vm);
      now.since = 'vm/memory-lost';
    }, { kind: 'failed', failure: { code: 'vm/memory-lost' }, runsOn: hostB }],
    ['stays down', () => { throw new CodedError('migration/not-here', 'its VMM is gone'); },
      { kind: 'failed', failure: { code: 'vm/memory-lost', detail: 'its VMM is gone' }, runsOn: null }],
    ['is booted anew by a target that does not answer', async (now) => {
      if ((await now.entry(vm))?.epoch === 2) await now.bootAnew(vm);
      throw new CodedError('host/unreachable', 'silent');
    }, { kind: 'failed', failure: { code: 'vm/memory-lost' }, runsOn: hostB }],
    ['nobody can say of', () => { throw new CodedError('host/unreachable', 'silent'); },
      { kind: 'completed', warnings: [{ code: 'host/unreachable' }] }],
  ])('tells a VM whose VMM died between the last look and Settle: one that %s', async (_what, then, told) => {
    let looks = 0;
    centre.faults.set('verifyTarget', async () => {
      looks += 1;
      if (looks > 1) await then(centre);
    });
    expect(await move('r1')).toMatchObject(told);
    expect(centre.calls).toContain(`${hostA} releaseSource`);
  });

  it('believes the target that a VM was booted anew', async () => {
    centre.faults.set('verifyTarget', async () => {
      if (centre.since === null) await centre.bootAnew(vm);
      centre.since = 'vm/memory-lost';
    });
    expect(await move('r1')).toMatchObject({
      kind: 'failed', failure: { code: 'vm/memory-lost', detail: 'test' }, runsOn: hostB });
  });

  it('says that a VM whose start was taken back, by whomever, runs at the source', async () => {
    // Handed over as far as the source saw; its sweep reads the ledger and takes the VM back.
    centre.faults.set('started', () => centre.takeBack(vm, hostA));
    expect(await move('r1')).toMatchObject({
      kind: 'failed', failure: { code: 'migration/taken-back' }, runsOn: hostA,
      compensationFailures: [],
    });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
    // Nobody has yet, and the target says so.
    centre.faults.clear();
    centre.faults.set('verifyTarget', async () => {
      if (centre.since === null) await centre.takeBack(vm, null);
      centre.since = 'migration/taken-back';
    });
    expect(await move('r2')).toMatchObject({
      kind: 'failed', failure: { code: 'migration/taken-back' }, runsOn: hostA });
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostA });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
  });

  it('settles a VM whose guest shut it down at the target, and says so', async () => {
    centre.since = 'vm/stopped-itself';
    expect(await move('r1')).toMatchObject({
      kind: 'completed', warnings: [{ code: 'vm/stopped-itself' }] });
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostB });
  });

  it('reports a guest that stopped itself', async () => {
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      throw new CodedError('vm/stopped-itself', 'poweroff');
    });
    expect(await move('r1')).toMatchObject({
      kind: 'failed', failure: { code: 'vm/stopped-itself' }, runsOn: null,
    });
  });

  it('gives a copy up at its deadline, and the VM goes on', async () => {
    // Time is skipped only while no activity runs, so the copy fails again and again for an hour.
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      throw new CodedError('host/unreachable', 'the link is down');
    });
    const outcome = await move('r1', { deadlineMs: 3600_000 });
    expect(outcome).toMatchObject({ kind: 'failed', failure: { code: 'migration/deadline' }, runsOn: hostA });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostA });
    expect(await historyLength('r1')).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
  });

  it('names a target whose runner is silent', async () => {
    const lonely = await FakeDatacentre.open(['host-a', 'host-b', 'host-x']);
    await workers.stop();
    workers = await allWorkers({ env, centre: Object.assign(lonely, { hosts: [hostA, hostB] }) });
    vm = await lonely.runningVm(`${vm}-x`, hostA);
    const { handle } = await startMigration(env.client, input('r1', {}, hostName('host-x')));
    expect(await handle.result()).toMatchObject({
      kind: 'failed', failure: { code: 'host/unreachable' }, runsOn: hostA,
    });
    await lonely.close();
  });

  it('refuses another target while a move runs, with the running id', async () => {
    centre.copyMs = 500;
    const first = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.sessions.size, { timeout: 10_000 }).toBe(1);
    const other = await startMigration(env.client, input('r2', {}, hostC));
    expect(await other.handle.result()).toMatchObject({
      kind: 'failed', failure: { code: 'migration/open', detail: first.migration },
    });
    expect(await first.handle.result()).toMatchObject({ kind: 'completed' });
  });

  it('ends a terminated move with the next request, before the Commit', async () => {
    centre.copyMs = 60_000;
    const first = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.sessions.size, { timeout: 10_000 }).toBe(1);
    await first.handle.terminate('test');
    centre.copyMs = 50;
    const second = await startMigration(env.client, input('r2', {}, hostC));
    expect(await second.handle.result()).toMatchObject({ kind: 'completed', target: hostC });
    expect(centre.whereRuns(vm)).toEqual([hostC]);
    expect(await centre.control.migrationEnd(first.migration)).toBe('aborted');
    expect(centre.prepared.has(`${hostB}/${vm}`)).toBe(false);
  });

  it('ends a terminated move with the next request, after the Commit', async () => {
    centre.faults.set('verifyTarget', () => new Promise(() => {}));
    const first = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.calls.includes(`${hostB} verifyTarget`), { timeout: 10_000 }).toBe(true);
    await first.handle.terminate('test');
    centre.faults.clear();
    const second = await startMigration(env.client, input('r2', {}, hostC));
    expect(await second.handle.result()).toMatchObject({ kind: 'completed', source: hostB, target: hostC });
    expect(await centre.control.migrationEnd(first.migration)).toBe('committed');
    expect(centre.whereRuns(vm)).toEqual([hostC]);
  });

  it('the sweep ends a terminated move without a new request', async () => {
    centre.copyMs = 60_000;
    const first = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.sessions.size, { timeout: 10_000 }).toBe(1);
    const sweep = (id: string) => env.client.workflow.execute('sweepMigrations', {
      workflowId: `sweep-${vm}-${id}`, taskQueue: 'control',
    });
    expect(await sweep('1')).toEqual([]);
    await first.handle.terminate('test');
    expect(await sweep('2')).toEqual([first.migration]);
    await expect.poll(async () => (await centre.entry(vm))?.phase, { timeout: 10_000 }).toBe('owned');
    await expect.poll(() => centre.prepared.size, { timeout: 10_000 }).toBe(0);
    expect(centre.whereRuns(vm)).toEqual([hostA]);
  });

  it('a terminated request can be given again and goes on', async () => {
    centre.copyMs = 1000;
    const first = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.sessions.size, { timeout: 10_000 }).toBe(1);
    await first.handle.terminate('test');
    const again = await startMigration(env.client, input('r1'));
    expect(await again.handle.result()).toMatchObject({ kind: 'completed' });
    expect(centre.calls.filter((call) => call.endsWith('switchover'))).toHaveLength(1);
  });

  it('a cancellation in Temporal before the Commit leaves the VM where it is', async () => {
    centre.copyMs = 60_000;
    const { handle } = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.sessions.size, { timeout: 10_000 }).toBe(1);
    await handle.cancel();
    expect(await handle.result()).toMatchObject({ kind: 'cancelled', compensationFailures: [] });
    expect(centre.whereRuns(vm)).toEqual([hostA]);
    expect(centre.prepared.size).toBe(0);
  });

  it('a cancellation after the Commit changes nothing', async () => {
    let isVerifying = false;
    centre.faults.set('verifyTarget', async () => {
      isVerifying = true;
      await new Promise((resolve) => setTimeout(resolve, 500));
    });
    const { handle } = await startMigration(env.client, input('r1'));
    await expect.poll(() => isVerifying, { timeout: 10_000 }).toBe(true);
    await handle.cancel();
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
  });
});
