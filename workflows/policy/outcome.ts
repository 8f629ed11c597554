/** How a move's outcome follows from what its session and the ledger said: pure. */
import { failureReport } from '../../contracts/failures.ts';
import type { FailureCode, FailureReport } from '../../contracts/failures.ts';
import type { HostName } from '../../contracts/identity.ts';
import type { LateFigures, SessionOutcome, TransferFigures } from '../../contracts/migration.ts';

/** Forward: the ledger has committed. Back: it has not, and what was done is undone. */
export type Way =
  | { readonly kind: 'forward'; readonly figures: TransferFigures }
  | { readonly kind: 'back'; readonly failure: FailureReport };

/** Figures of a move whose session nobody could ask any more (its workflow was reset, say). */
export const unknownFigures: TransferFigures = {
  totalMs: 0,
  totalParts: null,
  mode: 'pre-copy',
  downtimeMs: 0,
  downtimeParts: {
    stopMs: 0, lastPassMs: 0, deviceStateMs: 0, flushMs: 0, commitMs: 0, gateMs: 0, startedMs: 0,
    resumeMs: 0,
  },
  rounds: 0,
  bytesOnWire: 0,
  memoryBytesSent: 0,
  diskBytesSent: 0,
  postCopyFaults: 0,
  convergence: 'unknown: the session ended before its figures were read',
};

/**
 * The figures with what was still sent after the hand-over; null when the session was gone by then,
 * and undefined in what older runners answered.
 */
export const withLateFigures = (
  figures: TransferFigures, late: LateFigures | null | undefined,
): TransferFigures => ({
  ...figures,
  bytesOnWire: Math.max(figures.bytesOnWire, late?.bytesOnWire ?? 0),
  memoryBytesSent: Math.max(figures.memoryBytesSent, late?.memoryBytesSent ?? 0),
});

/** Where the session's end leads. */
export function wayAfter(session: SessionOutcome): Way {
  switch (session.kind) {
    case 'handed-over':
      return { kind: 'forward', figures: session.figures };
    case 'cancelled':
      return { kind: 'back', failure: failureReport('migration/cancelled', session.by) };
    case 'failed':
      return { kind: 'back', failure: session.failure };
  }
}

/** What the ledger's own memory of a request means for a run that begins again. */
export function wayOfEarlierRun(
  own: 'none' | 'preparing' | 'unsettled' | 'committed' | 'aborted' | 'reverted',
): Way | null {
  switch (own) {
    case 'none':
    case 'preparing':
      return null;
    case 'committed':
      return { kind: 'forward', figures: unknownFigures };
    case 'unsettled':
      // Started or not: the ledger is asked next, by the attempt to abort.
      return { kind: 'back', failure: failureReport('migration/not-here', 'begun again midway') };
    case 'aborted':
    case 'reverted':
      return {
        kind: 'back',
        failure: failureReport('ownership/refused', `this request has ended before: ${own}`),
      };
  }
}

const runsNowhere: readonly FailureCode[] = ['vm/stopped-itself', 'vmm/gone', 'vm/not-running'];

/** Where the VM is after a move that was undone. */
export const runsOnAfter = (failure: FailureReport, source: HostName | null): HostName | null =>
  runsNowhere.includes(failure.code) ? null : source;
