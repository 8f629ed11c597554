/**
 * Processes that are killed in mid-move, and a guest that shuts itself down: the VM runs on where
 * the ledger says (or is off, by its own will), the move ends, and the next one succeeds.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { timing } from '../../contracts/limits.ts';
import { mib } from '../../contracts/units.ts';
import { observerSocketOf } from '../../lab/bench/engines/direct.ts';
import { meetGuest } from '../../lab/bench/measure.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { QmpClient } from '../../runners/hypervisor/qmp/client.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const slow = { bandwidthBytesPerSecond: 4_000_000 };
/** A guest of these takes 12 s. */
const brisk = { bandwidthBytesPerSecond: 16_000_000 };

describeInLab('a move and kill -9', () => {
  let stage: MoveStage;
  let guest: StageGuest;
  /** Without disks, so that a copy can be taken up where it stood. */
  let bare: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    guest = await stage.guest({ name: 'survivor', octet: 120, dataMib: 32,
      disk: { format: 'raw', sizeBytes: 64 * mib, sourceImage: null } });
    bare = await stage.guest({ name: 'bare', octet: 121, dataMib: 64 });
  }, stageMsMax);
  afterEach(async () => {
    await stage.endOpenMove(guest.vm);
    await stage.endOpenMove(bare.vm);
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it.each(['source', 'target'] as const)('of the %s runner: the move completes', async (side) => {
    const before = await guest.begin();
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: brisk });
    await stage.untilSent(migration, 16 * mib);
    const killedAtMs = performance.now();
    await stage.killAndRestart(`host-${side === 'source' ? source.name : target.name}`);
    const { figures } = await completed(outcome);
    console.info(`${side} runner killed: completed after `
      + `${((performance.now() - killedAtMs) / 1000).toFixed(1)} s, `
      + `${(figures.memoryBytesSent / mib).toFixed(0)} MiB of memory sent by the last session`);
    await guest.expectAt(target, before, 1);
    await guest.moveAndExpect();
  });

  it('of the source runner: memory that has arrived is not sent again', async () => {
    const whole = (await bare.moveAndExpect()).figures.bytesOnWire;
    const before = await bare.begin();
    const [source, target] = [await bare.host(), await bare.otherHost()];
    const { migration, outcome } = await stage.move({
      vm: bare.vm, target: target.name, policy: brisk });
    await stage.untilSent(migration, 80 * mib);
    // What it has sent stands still, and is then known exactly.
    await stage.command(migration, { kind: 'pause' });
    await sleep(2 * timing.heartbeatEveryMs + 500);
    const sent = (await stage.view(migration)).status.progress?.bytesOnWire ?? 0;
    const killedAtMs = performance.now();
    await stage.killAndRestart(`host-${source.name}`);
    const restartedMs = performance.now() - killedAtMs;
    const { figures } = await completed(outcome);
    const again = (sent + figures.bytesOnWire - whole) / before.entry.spec.memoryBytes;
    console.info(`of ${(whole / mib).toFixed(0)} MiB ${(sent / mib).toFixed(0)} before the kill, `
      + `${(figures.bytesOnWire / mib).toFixed(0)} after it: ${(again * 100).toFixed(1)} % of `
      + `memory again; runner back after ${(restartedMs / 1000).toFixed(1)} s, move complete after `
      + `${((performance.now() - killedAtMs) / 1000).toFixed(1)} s`);
    expect(sent).toBeGreaterThan(whole / 3);
    expect(again).toBeLessThan(0.1);
    await bare.expectAt(target, before, 1);
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
