/**
 * Leases with everything real: ledger, runner, guard, kernel. A VM with `failover: automatic` is
 * bound to one from its first instruction on; when ledger or runner are away for longer, the guard
 * stops it and the kernel shuts its card, and an accepted renewal lets it go on. A VM without
 * failover is never bound. What a guard does alone is native/guard's tests' matter.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { GuardView } from '../support/guard-view.ts';
import { meetGuest } from '../../lab/bench/measure.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { GuestBefore, StageGuest } from '../support/move-stage.ts';

/** Three renewals long, to save time; the product's is six. */
const leaseTtlMs = 6_000;
/** Something has to happen at the end of a lease, or after the next renewals. */
const patienceMs = leaseTtlMs + 40_000;
/** From a lease's end until guard and kernel have acted, seen by looking every 100 ms. */
const lateMsMax = 1_500;

describeInLab('leases', () => {
  let stage: MoveStage;
  let leased: StageGuest;
  /** Given a new epoch while its runner is dead. */
  let given: StageGuest;
  let free: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2, leaseTtlMs });
    [leased, given, free] = await Promise.all([
      stage.guest({ name: 'leased', octet: 160, failover: 'automatic' }),
      stage.guest({ name: 'given', octet: 162, failover: 'automatic' }),
      stage.guest({ name: 'free', octet: 161 }),
    ]);
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  const guardOf = async (guest: StageGuest): Promise<GuardView> =>
    new GuardView({ lab: stage.lab, host: await guest.host(), vm: guest.vm });

  /** Load without open connections in mid-word: a pause of a lease is longer than TCP's patience. */
  async function begin(guest: StageGuest): Promise<GuestBefore> {
    const before = await guest.begin();
    await guest.outside.stopWriting();
    return before;
  }

  /** It went on where it was: same owner, same epoch, same incarnation, nothing lost. */
  async function expectUnharmed(guest: StageGuest, before: GuestBefore): Promise<void> {
    const { owner, epoch, startedBy } = before.entry;
    expect(await stage.entry(guest.vm)).toMatchObject({ owner, epoch, startedBy, phase: 'owned' });
    await guest.expectWhole(before);
  }

  /** The guard stops it and the kernel shuts its card, not before the lease's end and not late. */
  async function untilHeld(guard: GuardView): Promise<void> {
    const held = await until('the guard stops it', async () => {
      const status = await guard.status();
      return status.leasePaused ? status : null;
    }, patienceMs);
    const lateMs = held.nowBoottimeMs - (held.leaseEndsAtBoottimeMs ?? 0);
    expect(lateMs).toBeGreaterThanOrEqual(0);
    expect(lateMs).toBeLessThan(lateMsMax);
    expect(await guard.isStopped()).toBe(true);
    await until('the kernel shuts its card', async () =>
      !(await guard.cardPasses()) || null, lateMsMax);
    console.info(`stopped ${lateMs} ms after the lease's end, or earlier`);
  }

  async function untilGoesOn(guard: GuardView): Promise<void> {
    await until('it goes on', async () => !(await guard.status()).leasePaused || null, patienceMs);
    expect(await guard.isStopped()).toBe(false);
    await until('its card passes', async () => await guard.cardPasses() || null, patienceMs);
  }

  it('bind a VM from its first instruction on, and are renewed', async () => {
    const guard = await guardOf(leased);
    const first = await guard.status();
    expect(first).toMatchObject({ failover: 'automatic', leasePaused: false });
    const endsAtMs = first.leaseEndsAtBoottimeMs ?? 0;
    expect(endsAtMs - first.nowBoottimeMs).toBeLessThanOrEqual(leaseTtlMs);
    await until('a later end', async () =>
      ((await guard.status()).leaseEndsAtBoottimeMs ?? 0) > endsAtMs + leaseTtlMs || null,
    patienceMs);
    expect(await guard.cardPasses()).toBe(true);
    const { failover, leaseEndsAtBoottimeMs } = await (await guardOf(free)).status();
    expect([failover, leaseEndsAtBoottimeMs]).toEqual(['none', null]);
  });

  it('outlast a ledger that is away for less than their length', async () => {
    const [guard, before] = [await guardOf(leased), await begin(leased)];
    const ledger = stage.process('ledger');
    ledger.pause();
    // Longer than one renewal, shorter than what is left after the last one.
    await sleep(2_500);
    ledger.resume();
    const seen = await guard.status();
    await until('a renewal after it', async () =>
      ((await guard.status()).leaseEndsAtBoottimeMs ?? 0) > (seen.leaseEndsAtBoottimeMs ?? 0)
      || null, patienceMs);
    expect((await guard.status()).leasePaused).toBe(false);
    await expectUnharmed(leased, before);
  });

  it('end under a dead ledger, but for the VM that none binds; all go on with the next', async () => {
    const [guard, before] = [await guardOf(leased), await begin(leased)];
    const [freeGuard, freeBefore] = [await guardOf(free), await begin(free)];
    const ledger = stage.process('ledger');
    await ledger.kill();
    await untilHeld(guard);
    expect(await freeGuard.status()).toMatchObject({ leasePaused: false });
    expect([await freeGuard.isStopped(), await freeGuard.cardPasses()]).toEqual([false, true]);
    expect(await free.outside.witness({ op: 'status' })).toMatchObject({
      bootId: freeBefore.status.bootId });
    await stage.restart(ledger);
    await untilGoesOn(guard);
    await expectUnharmed(leased, before);
    await expectUnharmed(free, freeBefore);
  });

  it('end under a runner that stands still; the VM goes on with it', async () => {
    const [guard, before] = [await guardOf(leased), await begin(leased)];
    const runner = stage.process('host-h1');
    runner.pause();
    await untilHeld(guard);
    runner.resume();
    await untilGoesOn(guard);
    await expectUnharmed(leased, before);
  });

  it('end under a dead runner; the next one lets go on what is still its own', async () => {
    const [guard, before] = [await guardOf(leased), await begin(leased)];
    const [givenGuard, givenBefore] = [await guardOf(given), await stage.entry(given.vm)];
    const { vmmPid } = await givenGuard.processes();
    await given.outside.close();
    const runner = stage.process('host-h1');
    await runner.kill();
    await Promise.all([untilHeld(guard), untilHeld(givenGuard)]);
    // The ledger counts a little longer than the guards, and then gives it away.
    await until('the ledger gives it a new epoch', async () => {
      const [verdict] = await stage.ledger.propose([{
        kind: 'failover', vm: given.vm, epoch: givenBefore.epoch, to: givenBefore.diskHolder,
        fenceProof: null }]);
      return verdict?.accepted === true || null;
    }, patienceMs);
    await stage.restart(runner);
    await untilGoesOn(guard);
    await expectUnharmed(leased, before);
    const after = await until('it is started anew', async () => {
      const entry = await stage.entry(given.vm);
      return entry.lastStarted === entry.epoch ? entry : null;
    }, patienceMs);
    expect(after).toMatchObject({ epoch: givenBefore.epoch + 1, owner: givenBefore.owner });
    expect(after.startedBy).not.toBe(givenBefore.startedBy);
    expect((await givenGuard.processes()).vmmPid).not.toBe(vmmPid);
    await (await meetGuest(stage.lab, given.address)).close();
  });

  it('move with their VM', async () => {
    await leased.moveAndExpect();
    const guard = await guardOf(leased);
    const { leasePaused, leaseEndsAtBoottimeMs } = await guard.status();
    expect([leasePaused, await guard.cardPasses()]).toEqual([false, true]);
    await until('a renewal there', async () =>
      ((await guard.status()).leaseEndsAtBoottimeMs ?? 0) > (leaseEndsAtBoottimeMs ?? Infinity)
      || null, patienceMs);
  });
});
