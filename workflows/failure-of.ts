/** What a failed step means, as a row of the failure table. */
import { ActivityFailure, isCancellation, TimeoutFailure } from '@temporalio/workflow';
import { failureReport, readFailure } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';

/**
 * The coded failure on the chain of causes; a time-out without one is `host/unreachable` with the
 * name of the step, a cancelled step `migration/cancelled`, anything else `internal`.
 */
export function failureOf(error: unknown): FailureReport {
  if (isCancellation(error)) return failureReport('migration/cancelled', 'cancelled');
  const coded = readFailure(error);
  if (coded !== null) return coded;
  if (error instanceof ActivityFailure && error.cause instanceof TimeoutFailure) {
    return failureReport('host/unreachable', `${error.activityType}: ${error.cause.timeoutType}`);
  }
  return failureReport('internal', error instanceof Error ? error.message : String(error));
}
