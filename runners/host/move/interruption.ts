/** What ends a source's session from outside while it copies: a cancel, its VMM's end, its link. */
import { CodedError } from '../../../contracts/failures.ts';

export class Interruption {
  readonly #cancelled = Promise.withResolvers<string>();
  readonly #lost = Promise.withResolvers<never>();
  readonly #ended: Promise<CodedError>;

  constructor(ended: Promise<CodedError>) {
    this.#ended = ended;
    this.#lost.promise.catch(() => undefined);
  }

  cancel(by: string): void {
    this.#cancelled.resolve(by);
  }

  /** The target can't be reached any more: the next session goes on where it stands. */
  lose(why: string): void {
    this.#lost.reject(new CodedError('runner/session-lost', why));
  }

  /** `work`, unless it is interrupted: migration/cancelled, why the VMM ended, or lost. */
  race<T>(work: Promise<T>): Promise<T> {
    const by = this.#cancelled.promise.then((who): never => {
      throw new CodedError('migration/cancelled', `by ${who}`);
    });
    const gone = this.#ended.then((how): never => {
      throw how;
    });
    return Promise.race([work, by, gone, this.#lost.promise]);
  }
}
