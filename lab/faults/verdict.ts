/**
 * What a run amounts to, from what was seen outside: how many copies ran and were effective at
 * once, what the guest lost, and which of it the protocol does not allow. Pure.
 */
import type { Cell } from './cells.ts';
import { isAfterSettle, mayBootAnew } from './cells.ts';

/** Somebody was seen doing something: a VMM's vCPUs running, or a port sending the VM's frames. */
export interface Sighting {
  readonly who: string;
  /** Number of the look or of the frame: sightings of one look are simultaneous. */
  readonly look: number;
}

/**
 * Largest number of those seen at once: each from its first to its last sighting, where ending and
 * beginning in the same look is a change, not an overlap.
 */
export function seenAtOnce(sightings: readonly Sighting[]): number {
  const spans = new Map<string, { first: number; last: number }>();
  for (const { who, look } of sightings) {
    const span = spans.get(who);
    if (span === undefined) spans.set(who, { first: look, last: look });
    else span.last = look;
  }
  const all = [...spans.values()];
  const overlaps = (one: typeof all[number], other: typeof all[number]): boolean =>
    one.first < other.last && other.first < one.last;
  return all.reduce((most, one) =>
    Math.max(most, 1 + all.filter((other) => other !== one && overlaps(one, other)).length), 0);
}

/** How a move ended. */
export type RunOutcome =
  | 'completed' | 'stayed' | 'booted-anew'
  /** Not over in time. */
  | 'stuck'
  /** Over, but nothing answers. */
  | 'down'
  /** The phase was never seen, so nothing was tried. */
  | 'not-reached'
  /** The lab failed, not the product. */
  | 'lab-failed';

/** What was seen of one run. */
export interface Evidence {
  /** Null: nothing was done. */
  readonly cell: Cell | null;
  readonly reached: boolean;
  /** The ledger says that one host owns it and nobody moves it, and Temporal how it ended. */
  readonly ended: boolean;
  readonly onTarget: boolean;
  /** The guest answers; null: it does not. */
  readonly bootId: string | null;
  readonly bootIdBefore: string;
  readonly vcpuRunningMax: number;
  readonly effectiveMax: number;
  readonly selfCheckFailures: number;
  readonly counterWentBack: boolean;
  readonly lostWrites: number;
  readonly orphans: readonly string[];
  /** Temporal says that the move is completed, which is a running VM with its memory. */
  readonly toldCompleted: boolean;
  /** What Temporal says that the ledger does not; null: nothing. */
  readonly contradiction: string | null;
}

/** Outcome, and what of it must never be. */
export interface Judgement {
  readonly outcome: RunOutcome;
  readonly guestVerified: boolean;
  readonly violations: readonly string[];
}

function outcomeOf(seen: Evidence): RunOutcome {
  if (!seen.reached) return 'not-reached';
  if (!seen.ended) return 'stuck';
  if (seen.bootId === null) return 'down';
  if (seen.bootId !== seen.bootIdBefore) return 'booted-anew';
  return seen.onTarget ? 'completed' : 'stayed';
}

/** Judges one run. */
export function judge(seen: Evidence): Judgement {
  const outcome = outcomeOf(seen);
  const violations = [
    ...(seen.vcpuRunningMax > 1 ? [`${seen.vcpuRunningMax} copies ran at once`] : []),
    ...(seen.effectiveMax > 1 ? [`${seen.effectiveMax} copies were effective at once`] : []),
    ...(seen.lostWrites > 0 ? [`${seen.lostWrites} acknowledged writes lost`] : []),
    ...(seen.selfCheckFailures > 0 ? [`${seen.selfCheckFailures} damaged pages`] : []),
    ...(seen.counterWentBack ? ['the counter of the guest went back'] : []),
    ...(outcome === 'stuck' ? ['the move does not end'] : []),
    ...(outcome === 'down' ? ['the guest does not answer'] : []),
    ...(Number.isNaN(seen.lostWrites) ? ['what was acknowledged could not be read back'] : []),
    ...(outcome === 'booted-anew' && (seen.cell === null || !mayBootAnew(seen.cell))
      ? ['its memory was lost without need'] : []),
    ...(outcome === 'booted-anew' && seen.toldCompleted && !isAfterSettle(seen.cell)
      ? ['booted anew, and told as completed'] : []),
    ...(seen.contradiction === null ? [] : [seen.contradiction]),
    ...seen.orphans.map((orphan) => `left behind: ${orphan}`),
  ];
  const guestVerified = seen.bootId !== null && seen.selfCheckFailures === 0
    && !seen.counterWentBack && seen.lostWrites === 0;
  return { outcome, guestVerified, violations };
}
