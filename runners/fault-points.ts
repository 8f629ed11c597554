/**
 * Holds this process at fault points that a lab has armed (contracts/fault-points.ts). Decides when
 * somebody waits and for how long; who may arm is fault-points-server.ts's. A point that is not
 * armed costs one look-up.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { faultHoldMsMax } from '../contracts/fault-points.ts';
import type { FaultPoint, FaultStep } from '../contracts/fault-points.ts';

/** Runs `work` between the two points of a step. */
export type Barrier = <T>(step: FaultStep, work: () => Promise<T>) => Promise<T>;

interface Armed {
  readonly onReached: () => void;
  readonly released: Promise<void>;
  readonly release: () => void;
}

const keyOf = (point: FaultPoint, vm: string): string => `${point} ${vm}`;

/** The armed points of one process. */
export class FaultPoints {
  readonly #armed = new Map<string, Armed>();
  readonly #holdMsMax: number;

  constructor(holdMsMax = faultHoldMsMax) {
    this.#holdMsMax = holdMsMax;
  }

  /** The barrier of one VM's steps. A step that fails has no point after it. */
  of(vm: string): Barrier {
    return async (step, work) => {
      if (this.#armed.size > 0) await this.#reach(`${step}/before`, vm);
      const result = await work();
      if (this.#armed.size > 0) await this.#reach(`${step}/after`, vm);
      return result;
    };
  }

  /** The next to come there calls `onReached` and waits for `release`. Arming again replaces. */
  arm(point: FaultPoint, vm: string, onReached: () => void): void {
    this.release(point, vm);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#armed.set(keyOf(point, vm), { onReached, released: promise, release: resolve });
  }

  /** Lets go of whoever waits there, and of the point. */
  release(point: FaultPoint, vm: string): void {
    const key = keyOf(point, vm);
    this.#armed.get(key)?.release();
    this.#armed.delete(key);
  }

  async #reach(point: FaultPoint, vm: string): Promise<void> {
    const armed = this.#armed.get(keyOf(point, vm));
    if (armed === undefined) return;
    armed.onReached();
    const limit = new AbortController();
    const tooLong = sleep(this.#holdMsMax, undefined, { ref: false, signal: limit.signal });
    await Promise.race([armed.released, tooLong.catch(() => undefined)]);
    limit.abort();
  }
}
