/**
 * Does a fault to its victim and mends it: a dead process is started again, a stopped one goes on,
 * a cut link carries again, a host without power gets it back. What the fault does to the move is
 * seen elsewhere.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../../contracts/failures.ts';
import type { VmName } from '../../contracts/identity.ts';
import { sendSignal } from '../processes.ts';
import { isAlive, markOf } from '../state.ts';
import type { ProcessMark } from '../state.ts';
import { clockOf, cutOf, stopMsOf } from './cells.ts';
import type { Fault, Victim } from './cells.ts';
import type { Plant } from './plant.ts';
import { cutLink, powerOff, powerOn } from './power.ts';
import { fillDisk, hostDisk, ledgerDisk } from './small-disks.ts';
import { starve } from './starve.ts';
import { until } from './waiting.ts';

/** A dead process is started again after so long, as its system would do. */
const outageMs = 1_000;
/** Longer than a blackout's patience, shorter than a person would take. */
const fullMs = 8_000;
/** Whoever needs no page in so long goes on. */
const starvedMs = 8_000;
/** How long clocks are wrong: several heartbeats and renewals. */
const wrongMs = 8_000;
/** A killed VMM has to give back its memory. */
const deathMsMax = 10_000;

/** Who is hurt how. `release` lets go of who is held at the phase, once the fault is there. */
export interface Hurt {
  readonly plant: Plant;
  readonly vm: VmName;
  readonly victim: Victim;
  readonly fault: Fault;
  readonly release: () => void;
}

function marksOf({ plant, vm, victim }: Hurt): ProcessMark[] {
  const marks = plant.pidsOf(victim, vm).map((pid) => markOf(victim, pid));
  if (marks.length === 0) throw new CodedError('internal', `there is no ${victim}`);
  return marks;
}

/** kill -9 of all its processes; resolves when they are gone. */
export async function kill(hurt: Hurt): Promise<void> {
  const marks = marksOf(hurt);
  for (const mark of marks) sendSignal(mark, 'SIGKILL');
  await until(() => (marks.some(isAlive) ? null : true), deathMsMax);
}

async function killAndRestart(hurt: Hurt): Promise<void> {
  const { plant, victim, release } = hurt;
  if (victim === 'source-host' || victim === 'target-host') {
    const host = plant.hostOf(victim);
    await powerOff(plant.lab, host);
    release();
    await sleep(outageMs);
    await powerOn(plant.lab, host);
    return;
  }
  await kill(hurt);
  release();
  await sleep(outageMs);
  await plant.restart(victim);
}

/**
 * What the kernel leaves of a victim is ended, as a service's manager does; it starts again. False
 * when the victim needed no memory and goes on.
 */
async function starveAndRestart(order: Hurt): Promise<boolean> {
  const { plant, victim, vm, release } = order;
  const marks = marksOf(order);
  const starving = starve(marks.map(({ pid }) => pid), `${plant.lab.id}-${vm}`);
  let hasDied: true | null = null;
  try {
    release();
    hasDied = await until(() => (marks.every(isAlive) ? null : true), starvedMs);
    if (hasDied !== null) for (const mark of marks) sendSignal(mark, 'SIGKILL');
    await until(() => (hasDied === null || !marks.some(isAlive) ? true : null), deathMsMax);
  } finally {
    await starving.end();
  }
  if (hasDied === null) return false;
  await sleep(outageMs);
  await plant.restart(victim);
  return true;
}

async function stopFor(hurt: Hurt, ms: number): Promise<void> {
  const marks = marksOf(hurt);
  for (const mark of marks) sendSignal(mark, 'SIGSTOP');
  hurt.release();
  await sleep(ms);
  for (const mark of marks) sendSignal(mark, 'SIGCONT');
}

/**
 * Resolves when the fault is over and what can be mended is mended. False when it did not take: its
 * victim needed nothing of what it was denied.
 */
export async function hurt(order: Hurt): Promise<boolean> {
  if (order.fault === 'oom') return await starveAndRestart(order);
  await hurtSurely(order);
  return true;
}

async function hurtSurely(order: Hurt): Promise<void> {
  const { plant, victim, fault, release } = order;
  const [stopMs, cut, wrong] = [stopMsOf(fault), cutOf(fault), clockOf(fault)];
  if (stopMs !== null) return await stopFor(order, stopMs);
  if (cut !== null) {
    const mend = await cutLink(plant.lab, plant.hostOf(victim), cut.link);
    release();
    await sleep(cut.ms);
    return await mend();
  }
  if (fault === 'disk-full') {
    const giveBack = fillDisk(victim === 'ledger'
      ? ledgerDisk(plant.lab) : hostDisk(plant.lab, plant.hostOf(victim)));
    release();
    await sleep(fullMs);
    return giveBack();
  }
  if (wrong !== null) {
    const clock = plant.clockOf(victim);
    clock.set(wrong);
    release();
    await sleep(wrongMs);
    return clock.mend();
  }
  if (fault === 'sigkill') return await killAndRestart(order);
  throw new CodedError('internal', `${fault} is not built`);
}
