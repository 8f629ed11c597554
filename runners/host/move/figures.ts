/** The figures of one hand-over, from the marks of both sides and the engine's counters. Pure. */
import type { TotalParts, TransferFigures } from '../../../contracts/migration.ts';
import type { SourceSnapshot } from '../../data-plane/sessions.ts';
import { downtimeParts } from './downtime.ts';
import type { TargetMarks } from './peer-messages.ts';

export interface HandOverFacts {
  readonly nowMs: number;
  readonly startedAtMs: number;
  /** Link and lanes were up. */
  readonly connectedMs: number;
  /** Pages that the target lacked when it started. */
  readonly missingPageCount: number;
  /** Round 0 was begun. */
  readonly memoryBegunMs: number;
  /** Target's clock minus the source's, ms. */
  readonly clockOffsetMs: number;
  readonly stopEventMs: number;
  readonly stoppedMs: number;
  /** Null when the link broke before they came: the downtime is then what the source saw. */
  readonly targetMarks: TargetMarks | null;
  readonly snapshot: SourceSnapshot;
  readonly convergence: string;
}

/** Downtime and its parts on the source's clock, counters as they stand at the start. */
export function transferFigures(facts: HandOverFacts): TransferFigures {
  const { targetMarks, snapshot, stopEventMs, stoppedMs } = facts;
  const here = (mark: number | undefined): number =>
    mark === undefined ? facts.nowMs : mark - facts.clockOffsetMs;
  const resumeEventMs = here(targetMarks?.resumeEventMs);
  return {
    totalMs: facts.nowMs - facts.startedAtMs,
    totalParts: totalParts(facts, resumeEventMs),
    mode: facts.missingPageCount > 0 ? 'post-copy' : 'pre-copy',
    downtimeMs: resumeEventMs - stopEventMs,
    downtimeParts: downtimeParts({
      stopEventMs,
      stoppedMs,
      memoryInMs: here(targetMarks?.memoryInMs),
      deviceInMs: here(targetMarks?.deviceInMs),
      flushedMs: here(targetMarks?.flushedMs),
      committedMs: here(targetMarks?.committedMs),
      gateRaisedMs: here(targetMarks?.gateRaisedMs),
      startedMs: here(targetMarks?.startedMs),
      resumeEventMs,
    }),
    rounds: snapshot.round + 1,
    bytesOnWire: snapshot.bytesOnWire,
    memoryBytesSent: snapshot.bytesDone,
    diskBytesSent: snapshot.diskBytes,
    postCopyFaults: snapshot.postCopyFaults,
    convergence: facts.convergence,
  };
}

/** Parts that sum to nowMs - startedAtMs. */
function totalParts(facts: HandOverFacts, resumeEventMs: number): TotalParts {
  return {
    connectMs: facts.connectedMs - facts.startedAtMs,
    diskMs: facts.memoryBegunMs - facts.connectedMs,
    memoryMs: facts.stopEventMs - facts.memoryBegunMs,
    downtimeMs: resumeEventMs - facts.stopEventMs,
    closingMs: facts.nowMs - resumeEventMs,
  };
}
