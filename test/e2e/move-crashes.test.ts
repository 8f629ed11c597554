/**
 * Processes that are killed in mid-move, and a guest that shuts itself down: the VM runs on where
 * the ledger says (or is off, by its own will), the move ends, and the next one succeeds.
 */
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { timing } from '../../contracts/limits.ts';
import { observerSocketOf } from '../../lab/bench/engines/direct.ts';
import { meetGuest } from '../../lab/bench/measure.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { QmpClient } from '../../runners/hypervisor/qmp/client.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const slow = { bandwidthBytesPerSecond: 4_000_000 };
/** A restarted runner is back in 10 s here; an unattended session ends by itself. */
const endMsMax = timing.sessionUnattendedMsMax + 40_000;

describeInLab('a move and kill -9', () => {
  let stage: MoveStage;
  let guest: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    guest = await stage.guest({ name: 'survivor', octet: 120, dataMib: 32 });
  }, stageMsMax);
  afterEach(() => stage.endOpenMove(guest.vm), stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it.each(['source', 'target'] as const)('of the %s runner', async (side) => {
    const before = await guest.begin();
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: slow });
    await stage.untilSent(migration);
    const killedAtMs = performance.now();
    await stage.killAndRestart(`host-${side === 'source' ? source.name : target.name}`);
    const ended = await outcome;
    console.info(`${side} runner killed: ${ended.kind} `
      + `${ended.kind === 'failed' ? ended.failure.code : ''} after `
      + `${((performance.now() - killedAtMs) / 1000).toFixed(1)} s`);
    const entry = await stage.untilOwned(guest.vm, endMsMax);
    expect(ended.kind).toBe(entry.owner === target.name ? 'completed' : 'failed');
    if (ended.kind === 'failed') expect(ended.runsOn).toBe(source.name);
    await guest.expectAt(entry.owner === target.name ? target : source, before,
      entry.owner === target.name ? 1 : 0);
    await guest.moveAndExpect();
  });

  it('of the control worker: the move completes', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: slow });
    await stage.untilSent(migration);
    await stage.killAndRestart('control');
    // The new worker takes commands for the move that it did not start.
    await stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    await completed(outcome);
    await guest.expectAt(target, before, 1);
  });

  it('of the ledger: the move completes', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: { bandwidthBytesPerSecond: 8_000_000 } });
    await stage.untilSent(migration);
    await stage.killAndRestart('ledger');
    await completed(outcome);
    await guest.expectAt(target, before, 1);
  });

  it('and a guest that shuts itself down in mid-move', async () => {
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: slow });
    await stage.untilSent(migration);
    const button = await QmpClient.connect({
      socketPath: observerSocketOf(stage.lab, source, guest.vm) });
    await button.execute('system_powerdown');
    const ended = await outcome;
    expect(ended).toMatchObject({
      kind: 'failed', failure: { code: 'vm/stopped-itself' }, runsOn: null,
      compensationFailures: [],
    });
    const entry = await stage.untilOwned(guest.vm, 10_000);
    expect(entry.owner).toBe(source.name);
    await stage.expectClean(target, guest.vm);
    // It is not lost, and not started against its will: its owner starts it again when asked to.
    await until('the record of its will', async () =>
      (await stage.entry(guest.vm)).desired === 'stopped' || null, 10_000);
    await guest.outside.close();
    const { outcome: started } = await runLifecycle(stage.client, {
      step: 'start', input: { version: 1, vm: guest.vm, request: stage.freshRequest() } });
    expect(started).toMatchObject({ kind: 'completed', runState: 'running' });
    await (await meetGuest(stage.lab, guest.address)).close();
  });
});
