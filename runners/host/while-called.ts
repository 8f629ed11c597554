/** The wait of a call for work that outlives it: the call may be given up, the work goes on. */
import type { OperationCall } from '../../activities/host-operations.ts';
import { CodedError } from '../../contracts/failures.ts';

/** Failure, of the wait alone: migration/cancelled. */
export function whileCalled<T>(work: Promise<T>, { signal }: OperationCall): Promise<T> {
  const left = Promise.withResolvers<never>();
  const leave = (): void => left.reject(new CodedError('migration/cancelled', 'nobody waits'));
  if (signal.aborted) leave();
  signal.addEventListener('abort', leave, { once: true });
  return Promise.race([work, left.promise]).finally(() => {
    signal.removeEventListener('abort', leave);
  });
}
