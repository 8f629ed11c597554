/** Looks at one comparison of a whole image while it runs: how far, and when it will be over. */
import type { CheckProgress } from '../../../contracts/exactness.ts';

export class CheckLooks {
  #first: { readonly atMs: number; readonly done: number } | null = null;

  /** Null before anything is compared. */
  next(
    { nowMs, done, total }: {
      readonly nowMs: number; readonly done: number; readonly total: number;
    },
  ): CheckProgress | null {
    if (done === 0) return null;
    this.#first ??= { atMs: nowMs, done };
    // The last chunk is counted whole, also where the image ends inside of it.
    const pagesDone = Math.min(done, total);
    const [passedMs, compared] = [nowMs - this.#first.atMs, done - this.#first.done];
    const etaMs = pagesDone === total ? 0
      : compared <= 0 || passedMs <= 0 ? null : (total - pagesDone) * passedMs / compared;
    return { version: 1, pagesDone, pagesTotal: total, etaMs };
  }
}
