/** The list of what has to be undone, in the order of doing; decides nothing about when. */
import { CancellationScope } from '@temporalio/workflow';
import { failureReport } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';
import { failureOf } from './failure-of.ts';

/** Pushed before the step they undo, so that a step that failed half-way is undone as well. */
export class Compensations {
  readonly #entries: { readonly name: string; readonly undo: () => Promise<void> }[] = [];
  readonly #failed: FailureReport[] = [];

  push(name: string, undo: () => Promise<void>): void {
    this.#entries.push({ name, undo });
  }

  /** Records that a part of the undoing failed outside of the list. */
  note(name: string, error: unknown): void {
    const { code, detail } = failureOf(error);
    this.#failed.push(failureReport(code, `${name}: ${detail}`));
  }

  /** Runs all, the last first, cancelled or not; answers what failed, with the entry's name. */
  async run(): Promise<readonly FailureReport[]> {
    await CancellationScope.nonCancellable(async () => {
      for (const { name, undo } of this.#entries.splice(0).reverse()) {
        try {
          await undo();
        } catch (error) {
          this.note(name, error);
        }
      }
    });
    return this.#failed;
  }
}
