/**
 * A host that goes down with its VMs: everybody who asks is told what is waited for, and when it is
 * back, its runner starts them again there, under a new epoch, because the ledger still says so.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { meetGuest } from '../../lab/bench/measure.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { isVmmAlive } from '../../runners/hypervisor/guard-process.ts';
import { GuardView } from '../support/guard-view.ts';
import { missingForLab, tellSkipped } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';
import { askOperator } from '../support/operator.ts';

const missing = missingForLab();
const patienceMs = 120_000;

describe.runIf(missing.length === 0)('a host that is gone', () => {
  let stage: MoveStage;
  let wanted: StageGuest;
  let unwanted: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 1 });
    [wanted, unwanted] = await Promise.all([
      stage.guest({ name: 'wanted', octet: 170, failover: 'automatic' }),
      stage.guest({ name: 'unwanted', octet: 171 }),
    ]);
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  const ask = (...args: string[]): Promise<string> => askOperator(stage, ...args);

  it('is waited for, by name, and brings its VMs back', async () => {
    const [host] = stage.lab.plan.hosts;
    if (host === undefined) throw new Error('a lab without hosts');
    const before = await stage.entry(wanted.vm);
    const runner = stage.process(`host-${host.name}`);
    await runner.kill();
    for (const guest of [wanted, unwanted]) {
      await guest.outside.close();
      await new GuardView({ lab: stage.lab, host, vm: guest.vm }).cutPower();
    }
    // Told to stop while its host is away: it must not come back with it.
    const { epoch } = await stage.entry(unwanted.vm);
    const stopping = runLifecycle(stage.client, {
      step: 'stop',
      input: { version: 1, vm: unwanted.vm, request: stage.freshRequest(), graceMs: 0 },
    });
    stopping.catch(() => undefined);
    await until('the ledger wants it stopped', async () =>
      (await stage.entry(unwanted.vm)).desired === 'stopped' || null, patienceMs);

    const why = await until('the host is missed', async () => {
      const text = await ask('why', wanted.vm);
      return text.includes('to come back') ? text : null;
    }, patienceMs);
    expect(why).toMatch(new RegExp(`waits for its host to come back from ${host.name}, for `));
    expect(why).toMatch(/\(since \d{4}-/);
    expect(why).toMatch(new RegExp(`local to ${host.name}: no other host can start it`));
    expect(why).toMatch(new RegExp(`next: novacron host show ${host.name}`));
    expect(await ask('vm', 'show', wanted.vm)).toMatch(/waits for its host to come back/);
    expect(await ask('vm', 'list')).toMatch(/^wanted +host-silent/m);

    await stage.lab.start(runner.spec);
    const after = await until('it is started again', async () => {
      const entry = await stage.entry(wanted.vm);
      return entry.lastStarted > before.lastStarted ? entry : null;
    }, patienceMs);
    expect(after).toMatchObject({
      owner: host.name, phase: 'owned', epoch: before.epoch + 1, lastStarted: before.epoch + 1,
    });
    expect(after.startedBy).not.toBe(before.startedBy);
    await (await meetGuest(stage.lab, wanted.address)).close();
    const { leasePaused, leaseEndsAtBoottimeMs } =
      await new GuardView({ lab: stage.lab, host, vm: wanted.vm }).status();
    expect([leasePaused, leaseEndsAtBoottimeMs !== null]).toEqual([false, true]);
    expect(await ask('why', wanted.vm)).toMatch(/waits for nothing/);

    // However the stop ended for who asked, with its host away: nobody has started it again.
    await stopping.catch(() => undefined);
    expect(await stage.entry(unwanted.vm))
      .toMatchObject({ epoch, lastStarted: epoch, desired: 'stopped' });
    const left = new GuardView({ lab: stage.lab, host, vm: unwanted.vm });
    expect(await isVmmAlive(await left.processes())).toBe(false);
  });
});

describe.runIf(missing.length > 0)('a host that is gone', () => {
  it('is not tried here', () => tellSkipped('a host that is gone', missing));
});
