/**
 * What can be asked of a move while it runs: pause, resume, bandwidth, budget, post-copy, cancel;
 * the same request again, another target, Terminate and Reset from Temporal's UI. One lab, two
 * guests, which every test finds running and leaves running.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { timing } from '../../contracts/limits.ts';
import type { MigrationPolicy } from '../../contracts/migration.ts';
import { mib } from '../../contracts/units.ts';
import type { GuestLoad } from '../../lab/bench/measure.ts';
import { startMigration } from '../../payloads/migration-client.ts';
import { hostName } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, failureCodeOf, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

/** Slow enough that a guest with 32 MiB of data is on its way for 15 s. */
const slow: Partial<MigrationPolicy> = { bandwidthBytesPerSecond: 4_000_000, postCopy: 'never' };
/** Faster than `slow` carries. */
const heavyLoad: GuestLoad = {
  dirtyBytesPerSecond: 40_000_000, workingSetBytes: 16 * mib, order: 'random', pages: 'full',
};

describeInLab('commands to a move that runs', () => {
  let stage: MoveStage;
  let guest: StageGuest;
  /** Waits for an end beside the first one. */
  let second: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    [guest, second] = await Promise.all([
      stage.guest({ name: 'commanded', octet: 100, dataMib: 32 }),
      stage.guest({ name: 'second', octet: 101 }),
    ]);
  }, stageMsMax);
  // What a failed test left open must not fail the next one.
  afterEach(async () => {
    for (const { vm } of [guest, second]) await stage.endOpenMove(vm);
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it('pauses, resumes, and goes as fast as it is told', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: slow });
    await stage.untilSent(migration);
    await stage.command(migration, { kind: 'pause' });
    await until('the pause is told', async () =>
      (await stage.view(migration)).status.progress?.paused === true ? true : null, 5_000);
    // What the lanes held at the pause may still leave, and figures are a heartbeat old.
    const paused = await until('the lanes are empty', async () => {
      const earlier = (await stage.view(migration)).status.progress;
      await sleep(1_500);
      const later = (await stage.view(migration)).status.progress;
      return later?.bytesOnWire === earlier?.bytesOnWire ? later : null;
    }, 10_000);
    await sleep(2_500);
    const still = (await stage.view(migration)).status.progress;
    expect(still).toMatchObject({ paused: true, bytesOnWire: paused.bytesOnWire });
    await stage.command(migration, { kind: 'resume' });
    await until('bytes flow again', async () => {
      const { progress } = (await stage.view(migration)).status;
      return (progress?.bytesOnWire ?? 0) > (still?.bytesOnWire ?? Infinity) ? true : null;
    }, 5_000);
    const budget = await stage.command(
      migration, { kind: 'set-downtime-budget', downtimeBudgetMs: 300 });
    expect(budget.policy.downtimeBudgetMs).toBe(300);
    const faster = await stage.command(
      migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    expect(faster.policy.bandwidthBytesPerSecond).toBe(0);
    const begunMs = performance.now();
    await completed(outcome);
    // At the old limit the rest alone would take over ten seconds.
    expect(performance.now() - begunMs).toBeLessThan(10_000);
    await guest.expectAt(target, before, 1);
  });

  it('is cancelled within a second, at once and for good', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    const target = await guest.otherHost();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: slow });
    await stage.untilSent(migration);
    const begunMs = performance.now();
    await stage.command(migration, { kind: 'cancel', by: 'the test' });
    const cancelMs = performance.now() - begunMs;
    console.info(`cancel answered after ${cancelMs.toFixed(0)} ms`);
    expect(cancelMs).toBeLessThan(1_000);
    expect(await outcome).toMatchObject({
      kind: 'cancelled', by: 'the test', compensationFailures: [] });
    await guest.expectAt(source, before, 0);
    // A second request of the same VM, right after.
    await guest.moveAndExpect();
  });

  it('joins the same request, refuses another one, and answers a finished one again', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    const source = await guest.host();
    const request = stage.freshRequest();
    const first = await stage.move({ vm: guest.vm, target: target.name, policy: slow, request });
    await stage.untilSent(first.migration);
    const same = await stage.move({ vm: guest.vm, target: target.name, policy: slow, request });
    expect(same.migration).toBe(first.migration);
    for (const { name } of [source, target]) {
      const other = await stage.move({ vm: guest.vm, target: name });
      const refused = await other.outcome;
      expect(refused).toMatchObject({
        kind: 'failed', failure: { code: 'migration/open', detail: first.migration },
        runsOn: source.name,
      });
    }
    await stage.command(first.migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    const [one, two] = await Promise.all([first.outcome, same.outcome]);
    expect(one.kind).toBe('completed');
    expect(two).toEqual(one);
    await guest.expectAt(target, before, 1);
    const again = await startMigration(stage.client, {
      version: 1, vm: guest.vm, target: hostName(target.name), request, policy: defaultPolicy });
    expect(await again.handle.result()).toEqual(one);
  });

  it('gives up without consent when the guest is faster than the link', async () => {
    const before = await guest.begin(heavyLoad);
    const source = await guest.host();
    const target = await guest.otherHost();
    const { outcome } = await stage.move({
      vm: guest.vm, target: target.name,
      policy: { ...slow, bandwidthBytesPerSecond: 12_000_000, downtimeBudgetMs: 50,
        deadlineMs: 12_000 },
    });
    const ended = await outcome;
    expect(ended).toMatchObject({ kind: 'failed', runsOn: source.name, compensationFailures: [] });
    expect(['migration/not-converging', 'migration/deadline'])
      .toContain(ended.kind === 'failed' ? ended.failure.code : '');
    await guest.expectAt(source, before, 0);
  });

  it('goes to post-copy with consent, and then can not be cancelled', async () => {
    const before = await guest.begin(heavyLoad);
    const target = await guest.otherHost();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name,
      policy: { postCopy: 'when-needed', bandwidthBytesPerSecond: 8_000_000 },
    });
    await stage.untilSent(migration);
    // It is obeyed at the end of the round: the first one takes 10 s at this rate.
    await stage.command(migration, { kind: 'post-copy-now' });
    await until('the target runs', async () =>
      (await stage.entry(guest.vm)).owner === target.name ? true : null, 60_000);
    // Two more seconds of pages are missing there now.
    const refused = await failureCodeOf(
      stage.command(migration, { kind: 'cancel', by: 'the test' }));
    expect(refused).toBe('migration/past-return');
    const ended = await completed(outcome);
    console.info(`post-copy: ${ended.figures.postCopyFaults} faults, `
      + `downtime ${ended.figures.downtimeMs.toFixed(1)} ms, ${ended.figures.totalMs} ms in all`);
    await guest.expectAt(target, before, 1);
  });

  /** Terminated in mid-copy: back, within the time of a session that nobody attends. */
  async function endInMidCopy(torn: StageGuest): Promise<void> {
    const before = await torn.begin();
    const source = await torn.host();
    const { migration } = await stage.move({
      vm: torn.vm, target: (await torn.otherHost()).name,
      policy: { ...slow, bandwidthBytesPerSecond: 1_000_000 },
    });
    await stage.untilSent(migration);
    const begunMs = performance.now();
    await stage.client.workflow.getHandle(migration).terminate('the test');
    await stage.untilOwned(torn.vm, timing.sessionUnattendedMsMax + 15_000);
    console.info(`the ledger was tidy ${((performance.now() - begunMs) / 1000).toFixed(1)} s later`);
    await torn.expectAt(source, before, 0);
    await torn.moveAndExpect();
  }

  /** Terminated at the switchover: forward or back, but whole. */
  async function endAtSwitchover(torn: StageGuest): Promise<void> {
    const before = await torn.begin();
    const source = await torn.host();
    const target = await torn.otherHost();
    const { migration } = await stage.move({ vm: torn.vm, target: target.name });
    await until('the switchover', async () => {
      const { phase } = await stage.entry(torn.vm);
      const { status } = await stage.view(migration);
      return phase === 'unsettled' || status.phase === 'switchover' || status.outcome !== null
        || (phase === 'preparing' && status.phase === 'copy-memory') ? true : null;
    }, 20_000);
    await stage.client.workflow.getHandle(migration).terminate('the test').catch(() => undefined);
    const entry = await stage.untilOwned(torn.vm, timing.sessionUnattendedMsMax + 20_000);
    const moved = entry.owner === target.name;
    console.info(`terminated at the switchover: the VM is ${moved ? 'at the target' : 'back'}`);
    await torn.expectAt(moved ? target : source, before, moved ? 1 : 0);
    await torn.moveAndExpect();
  }

  it('is terminated in the UI, in mid-copy and at the switchover: it ends, the VM runs whole, '
    + 'the next move succeeds', async () => {
    // Both wait for most of their time: side by side, with a guest each.
    const ends = await Promise.allSettled([endInMidCopy(guest), endAtSwitchover(second)]);
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  });

  it('is reset in the UI in mid-copy: the new run takes the session up', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    const { migration } = await stage.move({ vm: guest.vm, target: target.name, policy: slow });
    await stage.untilSent(migration);
    const handle = stage.client.workflow.getHandle(migration);
    const { runId } = await handle.describe();
    const { events } = await handle.fetchHistory();
    // The first workflow task that ended: everything after it is done again.
    const point = (events ?? []).find(({ workflowTaskCompletedEventAttributes: done }) =>
      done !== null && done !== undefined)?.eventId;
    if (point === null || point === undefined) throw new Error('the history has no task');
    await stage.client.workflowService.resetWorkflowExecution({
      namespace: stage.services.temporal.namespace, requestId: `${migration}-reset`, reason: 'the test',
      workflowExecution: { workflowId: migration, runId },
      workflowTaskFinishEventId: point,
    });
    await until('the new run copies', async () => {
      const { runId: present } = await stage.client.workflow.getHandle(migration).describe();
      const { status } = await stage.view(migration);
      return present !== runId && status.phase === 'copy-memory' ? true : null;
    }, 30_000);
    await stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    const ended = await stage.client.workflow.getHandle(migration).result() as { kind: string };
    expect(ended.kind, JSON.stringify(ended)).toBe('completed');
    await guest.expectAt(target, before, 1);
  });
});
