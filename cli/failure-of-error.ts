/** Turns whatever was thrown into the closed list: code, what, where, what to do. Pure. */
import { CodedError, failureReport, readFailure } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';

/** gRPC status numbers that mean that nobody answered. */
const grpcDeadlineExceeded = 4;
const grpcPermissionDenied = 7;
const grpcFailedPrecondition = 9;
const grpcUnavailable = 14;
const grpcUnauthenticated = 16;
const causeDepthMax = 10;

/** First number under `code` on the chain of causes: gRPC's status. */
function grpcStatusOf(error: unknown): number | null {
  let current: unknown = error;
  for (let depth = 0; depth < causeDepthMax; depth += 1) {
    if (typeof current !== 'object' || current === null) return null;
    const { code, cause } = current as { code?: unknown; cause?: unknown };
    if (typeof code === 'number') return code;
    current = cause;
  }
  return null;
}

/**
 * True when nobody worked on what Temporal took: no answer in time, or (FAILED_PRECONDITION)
 * Temporal says itself that no worker has polled lately.
 */
export const isUnworked = (error: unknown): boolean =>
  grpcStatusOf(error) === grpcDeadlineExceeded || grpcStatusOf(error) === grpcFailedPrecondition
  || (error instanceof Error && error.name === 'WorkflowUpdateRPCTimeoutOrCancelledError');

/** Report of an error; `internal` for what nobody expected. */
export function failureOfError(error: unknown): FailureReport {
  const coded = readFailure(error);
  if (coded !== null) return coded;
  if (!(error instanceof Error)) return failureReport('internal', String(error));
  const status = grpcStatusOf(error);
  if (error.name === 'WorkflowNotFoundError') {
    return failureReport('migration/unknown', error.message);
  }
  if (status === grpcUnavailable || isUnworked(error)) {
    return failureReport('temporal/unreachable', error.message);
  }
  if (status === grpcPermissionDenied || status === grpcUnauthenticated) {
    return failureReport('ownership/role', error.message);
  }
  if (/Failed to connect to Temporal/.test(error.message)) {
    return failureReport('temporal/unreachable', error.message);
  }
  if (error instanceof TypeError || error instanceof RangeError) {
    // Checked constructors of contracts (names, sizes) throw these for what a person typed.
    if (/is not valid|is not a size|must be a/.test(error.message)) {
      return failureReport('input/invalid', error.message);
    }
  }
  return failureReport('internal', error.message);
}

/** The same as an error, for throwing on. */
export const codedOf = (error: unknown): CodedError => {
  if (error instanceof CodedError) return error;
  const { code, detail } = failureOfError(error);
  return new CodedError(code, detail, error);
};
