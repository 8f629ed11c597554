/**
 * VMMs that die under a living runner: it is recorded at once, everybody who asks is told, and the
 * VM starts again, cold, under the next epoch. One that its guest has shut down stays down, and one
 * in a move is the move's matter first.
 */
import { rename } from 'node:fs/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { observerSocketOf } from '../../lab/bench/engines/direct.ts';
import { meetGuest } from '../../lab/bench/measure.ts';
import { mib } from '../../contracts/units.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { QmpClient } from '../../runners/hypervisor/qmp/client.ts';
import { GuardView } from '../support/guard-view.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';
import { askOperator } from '../support/operator.ts';

/** Noticed by the end of the monitor's connection, not by the next sweep. */
const noticedMsMax = 2_000;
const patienceMs = 60_000;

describeInLab('a VMM that dies alone', () => {
  let stage: MoveStage;
  let guest: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    guest = await stage.guest({ name: 'alone', octet: 175, failover: 'automatic',
      disk: { format: 'raw', sizeBytes: 64 * mib, sourceImage: null } });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  const viewOf = async (): Promise<GuardView> =>
    new GuardView({ lab: stage.lab, host: await guest.host(), vm: guest.vm });

  async function killVmm(): Promise<void> {
    const { vmmPid } = await (await viewOf()).processes();
    process.kill(vmmPid, 'SIGKILL');
  }

  const untilStarted = (before: VmEntry): Promise<VmEntry> =>
    until('it is started again', async () => {
      const entry = await stage.entry(guest.vm);
      return entry.lastStarted > before.lastStarted ? entry : null;
    }, patienceMs);

  async function expectAnswer(): Promise<void> {
    await (await meetGuest(stage.lab, guest.address)).close();
  }

  it('is recorded, told, and started again under the next epoch', async () => {
    const before = await stage.entry(guest.vm);
    const { disksDirectory } = (await viewOf()).paths;
    await guest.outside.close();
    // Its start can't succeed for a while, so that there is time to ask.
    await rename(disksDirectory, `${disksDirectory}.away`);
    const killedAtMs = performance.now();
    await killVmm();
    const lost = await until('the record', async () => {
      const entry = await stage.entry(guest.vm);
      return entry.epoch > before.epoch ? entry : null;
    }, patienceMs);
    const noticedMs = performance.now() - killedAtMs;
    expect(lost).toMatchObject({
      phase: 'owned', owner: before.owner, epoch: before.epoch + 1, desired: 'running',
      lastStarted: before.lastStarted, cause: `restart by host/${before.owner}: `
        + 'its VMM was ended by signal 9',
    });
    expect(noticedMs).toBeLessThan(noticedMsMax);
    const [why, shown, hosts] = await Promise.all([
      askOperator(stage, 'why', guest.vm), askOperator(stage, 'vm', 'show', guest.vm),
      askOperator(stage, 'host', 'list')]);
    await rename(`${disksDirectory}.away`, disksDirectory);
    expect(why).toMatch(/waits for its start from the runner of h1/);
    for (const text of [why, shown]) expect(text).toMatch(/its VMM was ended by signal 9/);
    expect(hosts).toMatch(/^h1 +open +1 \(1 starting\)/m);

    const after = await untilStarted(before);
    console.info(`noticed ${noticedMs.toFixed(0)} ms after the kill`);
    expect(after).toMatchObject({
      phase: 'owned', owner: before.owner, epoch: before.epoch + 1, lastStarted: before.epoch + 1,
    });
    expect(after.startedBy).not.toBe(before.startedBy);
    await expectAnswer();
    const { leasePaused, leaseEndsAtBoottimeMs } = await (await viewOf()).status();
    expect([leasePaused, leaseEndsAtBoottimeMs !== null]).toEqual([false, true]);
    expect(await askOperator(stage, 'why', guest.vm))
      .toMatch(/waits for nothing[^]*cold, after restart .* its VMM was ended by signal 9/);
  });

  it('in mid-move: the move ends by its rules, then it is started again', async () => {
    const before = await stage.entry(guest.vm);
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: { bandwidthBytesPerSecond: 4_000_000 } });
    await stage.untilSent(migration);
    await killVmm();
    const ended = await outcome;
    expect(ended).toMatchObject({ kind: 'failed', failure: { code: 'vmm/gone' } });
    const after = await untilStarted(before);
    expect(after).toMatchObject({ owner: source.name, phase: 'owned', epoch: before.epoch + 1 });
    expect(await stage.ledger.migrationEnd(migration)).toBe('aborted');
    await expectAnswer();
    await stage.expectClean(target, guest.vm);
  });

  it('told to end from outside: not its guest\'s will, so it is started again', async () => {
    const before = await stage.entry(guest.vm);
    const { vmmPid } = await (await viewOf()).processes();
    process.kill(vmmPid, 'SIGTERM');
    const after = await untilStarted(before);
    expect(after).toMatchObject({ epoch: before.epoch + 1, desired: 'running' });
    expect(after.cause).toMatch(/its VMM was told to end by signal 15/);
    await expectAnswer();
  });

  it('by its guest\'s will: it stays down, and the ledger knows', async () => {
    const before = await stage.entry(guest.vm);
    const button = await QmpClient.connect({
      socketPath: observerSocketOf(stage.lab, await guest.host(), guest.vm) });
    await button.execute('system_powerdown');
    const down = await until('the record', async () => {
      const entry = await stage.entry(guest.vm);
      return entry.desired === 'stopped' ? entry : null;
    }, patienceMs);
    expect(down).toMatchObject({ epoch: before.epoch, cause: `desire by host/${before.owner}` });
    expect(await askOperator(stage, 'vm', 'list')).toMatch(/^alone +stopped/m);
    const { outcome } = await runLifecycle(stage.client, {
      step: 'start', input: { version: 1, vm: guest.vm, request: stage.freshRequest() } });
    expect(outcome).toMatchObject({ kind: 'completed', epoch: before.epoch + 1 });
    await expectAnswer();
  });
});
