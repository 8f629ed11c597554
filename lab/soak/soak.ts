/**
 * A sitting of the soak: one lab and one guest that moves back and forth, every so often with a
 * fault that must not cost it its memory. What a move is says faults/run.ts; here is their order.
 */
import type { Lab } from '../lab.ts';
import {
  cellsOf, clockOf, cutOf, guestKindOf, mayBootAnew, obstacleOf,
} from '../faults/cells.ts';
import type { Cell, Fault } from '../faults/cells.ts';
import { Plant } from '../faults/plant.ts';
import { FaultRun } from '../faults/run.ts';
import type { RunRecord } from '../faults/run.ts';
import type { Reading } from './growth.ts';
import { sampleOf } from './sample.ts';

/** Of all moves; the others are left in peace. */
const faultShare = 1 / 3;

const isShort = (fault: Fault): boolean =>
  fault !== 'sigstop-20s' && (cutOf(fault)?.ms ?? 0) <= 5_000;

/** Faults of a soak: those that are short, and after which the guest has to go on as it was. */
export const soakCells: readonly Cell[] = cellsOf({ victims: [], phases: [], faults: [] })
  .filter((cell) => obstacleOf(cell) === null && !mayBootAnew(cell) && isShort(cell.fault)
    // The guest has a local disk, and the lab the machine's clocks and disks.
    && cell.victim !== 'volume-server' && cell.fault !== 'disk-full'
    && clockOf(cell.fault) === null);

/** What the next move meets; every kind of fault is as likely, or its rare ones were never seen. */
export function nextCell(random: () => number): Cell | null {
  const pick = <T>(from: readonly T[]): T | undefined => from[Math.floor(random() * from.length)];
  if (random() >= faultShare) return null;
  const fault = pick([...new Set(soakCells.map((cell) => cell.fault))]);
  return pick(soakCells.filter((cell) => cell.fault === fault)) ?? null;
}

/** One move and what the lab holds after it. */
export interface SoakStep {
  readonly record: RunRecord;
  readonly readings: readonly Reading[];
}

export interface SoakOptions {
  readonly minutes: number;
  readonly random: () => number;
  readonly tell: (what: string) => void;
  readonly onStep: (step: SoakStep) => void;
  /** Told of the lab, so that an interrupt can take it down. */
  readonly onLab: (lab: Lab) => void;
  /** Before the lab is taken down, with whether something went wrong in it. */
  readonly onEnd: (lab: Lab, isBad: boolean) => void;
  readonly interrupted: AbortSignal;
}

/** Moves until the time is over, or until something happens that must not. */
export async function runSoak(options: SoakOptions): Promise<void> {
  const { minutes, random, tell, onStep, onEnd, interrupted } = options;
  tell('raising a lab');
  const plant = await Plant.raise(options.onLab);
  let isBad = true;
  try {
    tell('booting a guest');
    const guest = await plant.boot(guestKindOf(null));
    const end = performance.now() + minutes * 60_000;
    for (let moves = 1; performance.now() < end && !interrupted.aborted; moves += 1) {
      await plant.settle(guest);
      const record = await new FaultRun(plant, nextCell(random), tell).moveOf(guest, null);
      if (interrupted.aborted) return;
      if (record.violations.length === 0) await plant.settle(guest);
      onStep({ record, readings: await sampleOf(plant, guest, moves) });
      if (record.violations.length > 0) return;
    }
    isBad = false;
    await guest.outside.close();
  } finally {
    if (!interrupted.aborted) onEnd(plant.lab, isBad);
    tell('taking the lab down');
    await plant.lower();
  }
}
