/**
 * Decides when a disk mirror can't win against the guest's writes any more. Pure; the host runner
 * then makes the mirror write-blocking, which slows the guest's writes to the link's speed.
 */

/** What is left must shrink by this part within the patience, else the guest is too fast. */
const shrinkPart = 0.05;
/** Long enough for a burst of writes or a stalled link to pass, ms. */
const patienceMs = 4_000;

export interface MirrorPace {
  readonly leastBytesLeft: number;
  readonly leastAtMs: number;
}

export const freshPace = (nowMs: number): MirrorPace => ({
  leastBytesLeft: Infinity, leastAtMs: nowMs,
});

/** The pace after one more look, and whether the guest outruns the link. */
export function judgePace(
  pace: MirrorPace, look: { readonly bytesLeft: number; readonly nowMs: number },
): { readonly pace: MirrorPace; readonly outrun: boolean } {
  if (look.bytesLeft <= pace.leastBytesLeft * (1 - shrinkPart) || look.bytesLeft === 0) {
    return { pace: { leastBytesLeft: look.bytesLeft, leastAtMs: look.nowMs }, outrun: false };
  }
  return { pace, outrun: look.nowMs - pace.leastAtMs >= patienceMs };
}
