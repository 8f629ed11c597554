/**
 * Splits a measured blackout into its named parts. Pure: the marks come from QEMU's event stamps
 * and from both runners; marks of the target are put on the source's clock first.
 */
import type { DowntimeParts } from '../../../contracts/migration.ts';

/** Moments of one blackout on the source's clock, ms since the epoch. */
export interface BlackoutMarks {
  readonly stopEventMs: number;
  readonly stoppedMs: number;
  readonly memoryInMs: number;
  readonly deviceInMs: number;
  readonly flushedMs: number;
  readonly committedMs: number;
  readonly gateRaisedMs: number;
  readonly startedMs: number;
  readonly resumeEventMs: number;
}

/** Parts that sum exactly to resumeEvent - stopEvent: what overlaps counts for the earlier part. */
export function downtimeParts(marks: BlackoutMarks): DowntimeParts {
  let reached = marks.stopEventMs;
  const until = (mark: number): number => {
    const next = Math.min(Math.max(mark, reached), marks.resumeEventMs);
    const part = next - reached;
    reached = next;
    return part;
  };
  return {
    stopMs: until(marks.stoppedMs),
    lastPassMs: until(marks.memoryInMs),
    deviceStateMs: until(marks.deviceInMs),
    flushMs: until(marks.flushedMs),
    commitMs: until(marks.committedMs),
    gateMs: until(marks.gateRaisedMs),
    startedMs: until(marks.startedMs),
    resumeMs: until(marks.resumeEventMs),
  };
}

/** One ping: when it left and came back here, and the peer's clock in between, all ms. */
export interface ClockSample {
  readonly sentMs: number;
  readonly peerMs: number;
  readonly receivedMs: number;
}

/** Peer's clock minus ours, from the ping with the shortest round trip; `errorMs` is half of it. */
export function clockOffset(
  samples: readonly ClockSample[],
): { readonly offsetMs: number; readonly errorMs: number } {
  let best: { offsetMs: number; errorMs: number } = { offsetMs: 0, errorMs: Infinity };
  for (const { sentMs, peerMs, receivedMs } of samples) {
    const errorMs = (receivedMs - sentMs) / 2;
    if (errorMs < best.errorMs) best = { offsetMs: peerMs - (sentMs + receivedMs) / 2, errorMs };
  }
  return best;
}
