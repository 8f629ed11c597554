/** Steps about one VM take turns: a timed-out attempt may still run when the next one arrives. */
import type { VmName } from '../../contracts/identity.ts';

export class Turns {
  readonly #last = new Map<VmName, Promise<unknown>>();

  /** Runs `step` after every earlier step about `vm` has ended, however it ended. */
  async take<T>(vm: VmName, step: () => Promise<T>): Promise<T> {
    const before = this.#last.get(vm) ?? Promise.resolve();
    const turn = before.then(step, step);
    const settled = turn.catch(() => undefined);
    this.#last.set(vm, settled);
    try {
      return await turn;
    } finally {
      if (this.#last.get(vm) === settled) this.#last.delete(vm);
    }
  }
}
