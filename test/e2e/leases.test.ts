/**
 * Leases with everything real: ledger, runner, guard, kernel. A VM with `failover: automatic` is
 * bound to one from its first instruction on, and a ledger that is away for less harms nobody; a VM
 * without failover is never bound. What a guard does at the end is native/guard's tests' matter.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { GuardView } from '../support/guard-view.ts';
import { missingForLab, tellSkipped } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { GuestBefore, StageGuest } from '../support/move-stage.ts';

const missing = missingForLab();
/** Four renewals long, for a machine that is busy; the product's is six. */
const leaseTtlMs = 8_000;
/** Something has to happen at the end of a lease, or after the next renewals. */
const patienceMs = leaseTtlMs + 40_000;

describe.runIf(missing.length === 0)('leases', () => {
  let stage: MoveStage;
  let leased: StageGuest;
  let free: StageGuest;
  let freeGuard: GuardView;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2, leaseTtlMs });
    [leased, free] = await Promise.all([
      stage.guest({ name: 'leased', octet: 160, failover: 'automatic' }),
      stage.guest({ name: 'free', octet: 161 }),
    ]);
    freeGuard = await guardOf(free);
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

  it('bind a VM from its first instruction on, and are renewed', async () => {
    const guard = await guardOf(leased);
    const first = await guard.status();
    expect(first).toMatchObject({ failover: 'automatic', leasePaused: false });
    const endsAtMs = first.leaseEndsAtBoottimeMs ?? 0;
    expect(endsAtMs - first.nowBoottimeMs).toBeLessThanOrEqual(leaseTtlMs);
    await until('a later end', async () =>
      ((await guard.status()).leaseEndsAtBoottimeMs ?? 0) > endsAtMs + 2 * leaseTtlMs || null,
    patienceMs);
    expect(await guard.cardPasses()).toBe(true);
    const { failover, leaseEndsAtBoottimeMs } = await freeGuard.status();
    expect([failover, leaseEndsAtBoottimeMs]).toEqual(['none', null]);
  });

  it('outlast a ledger that is away for less than their length', async () => {
    const [guard, before] = [await guardOf(leased), await begin(leased)];
    const ledger = stage.process('ledger');
    ledger.pause();
    // Longer than one renewal, shorter than what is left after the last one.
    await sleep(3_000);
    ledger.resume();
    const seen = await guard.status();
    await until('a renewal after it', async () =>
      ((await guard.status()).leaseEndsAtBoottimeMs ?? 0) > (seen.leaseEndsAtBoottimeMs ?? 0)
      || null, patienceMs);
    expect((await guard.status()).leasePaused).toBe(false);
    await expectUnharmed(leased, before);
  });
});

describe.runIf(missing.length > 0)('leases', () => {
  it('are not tried here', () => tellSkipped('leases', missing));
});
