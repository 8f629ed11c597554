/** What ends a source's session from outside while it copies: a cancel, or the end of its VMM. */
import { CodedError } from '../../../contracts/failures.ts';

export class Interruption {
  readonly #cancelled = Promise.withResolvers<string>();
  readonly #ended: Promise<CodedError>;

  constructor(ended: Promise<CodedError>) {
    this.#ended = ended;
  }

  cancel(by: string): void {
    this.#cancelled.resolve(by);
  }

  /** `work`, unless it is interrupted: migration/cancelled, or why the VMM ended. */
  race<T>(work: Promise<T>): Promise<T> {
    const by = this.#cancelled.promise.then((who): never => {
      throw new CodedError('migration/cancelled', `by ${who}`);
    });
    const gone = this.#ended.then((how): never => {
      throw how;
    });
    return Promise.race([work, by, gone]);
  }
}
