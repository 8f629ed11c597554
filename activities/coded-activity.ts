/**
 * The edge of an activity: coded failures become ApplicationFailures, heartbeats are sent while a
 * step runs. What a step does is decided elsewhere.
 */
import { ApplicationFailure, Context } from '@temporalio/activity';
import { failureFields, FinalError } from '../contracts/failures.ts';
import { codedErrorOf } from '../contracts/foreign-errors.ts';
import { timing } from '../contracts/limits.ts';

/** The ApplicationFailure of any error; what nobody expected is `internal`. */
export function toApplicationFailure(error: unknown): ApplicationFailure {
  if (error instanceof ApplicationFailure) return error;
  const coded = codedErrorOf(error);
  const fields = failureFields(coded.code, coded.detail);
  const nonRetryable = fields.nonRetryable || coded instanceof FinalError;
  return ApplicationFailure.create({
    ...fields, nonRetryable, ...(error instanceof Error ? { cause: error } : {}) });
}

/**
 * Wraps each step of a set so that it throws coded failures only. Cancellation passes as it is:
 * a cancelled attempt rejects with Temporal's own CancelledFailure.
 */
export function codedActivities<Steps extends object>(steps: Steps): Steps {
  const wrapped = Object.entries(steps as Record<string, (input: never) => Promise<unknown>>).map(
    ([name, step]) => [
      name,
      async (input: never): Promise<unknown> => {
        try {
          return await step(input);
        } catch (error) {
          if (Context.current().cancellationSignal.aborted) await Context.current().cancelled;
          throw toApplicationFailure(error);
        }
      },
    ] as const,
  );
  return Object.fromEntries(wrapped) as Steps;
}

/**
 * Runs a step with a heartbeat every `timing.heartbeatEveryMs`, the first at once; `detail` is
 * asked for each. A step that ignores the signal still ends for Temporal when its attempt is
 * cancelled.
 */
export async function withHeartbeat<Answer>(
  step: (signal: AbortSignal) => Promise<Answer>,
  detail: () => unknown = () => null,
): Promise<Answer> {
  const context = Context.current();
  const beat = (): void => context.heartbeat(detail());
  beat();
  const timer = setInterval(beat, timing.heartbeatEveryMs);
  try {
    return await Promise.race([step(context.cancellationSignal), context.cancelled]);
  } finally {
    clearInterval(timer);
  }
}
