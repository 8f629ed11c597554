/** What the four life-cycle workflows share: status query, compensation, and their end. */
import {
  CancellationScope, defineQuery, setCurrentDetails, setHandler,
} from '@temporalio/workflow';
import type { HostName, VmName } from '../contracts/identity.ts';
import { lifecycleMessages } from '../contracts/vm-lifecycle.ts';
import type {
  LifecycleCompleted, LifecycleOutcome, LifecyclePhase, LifecycleStatus,
} from '../contracts/vm-lifecycle.ts';
import { Compensations } from './compensation.ts';
import { failureOf } from './failure-of.ts';

const statusQuery = defineQuery<LifecycleStatus>(lifecycleMessages.status);

/** What a completed step found; the rest of the outcome is filled in. */
export type Reached = Pick<LifecycleCompleted, 'host' | 'runState' | 'epoch' | 'incarnation'>;

/** One life-cycle workflow in progress. */
export class LifecycleRun {
  readonly undo = new Compensations();
  readonly #vm: VmName;
  readonly #title: string;
  #host: HostName | null = null;
  #phase: LifecyclePhase = 'record';
  #outcome: LifecycleOutcome | null = null;

  constructor(vm: VmName, title: string) {
    this.#vm = vm;
    this.#title = title;
    setHandler(statusQuery, () => (
      { version: 1, vm: this.#vm, phase: this.#phase, outcome: this.#outcome }
    ));
  }

  enter(phase: LifecyclePhase, host: HostName | null = this.#host): void {
    this.#phase = phase;
    this.#host = host;
    setCurrentDetails(`${this.#title} \`${this.#vm}\` on \`${host ?? '?'}\`: **${phase}**`);
  }

  /** Runs the steps; a failure or a cancellation undoes what was pushed, and is the outcome. */
  async outcomeOf(steps: () => Promise<Reached>): Promise<LifecycleOutcome> {
    try {
      this.#outcome = { version: 1, vm: this.#vm, kind: 'completed', ...(await steps()) };
    } catch (error) {
      this.#outcome = await CancellationScope.nonCancellable(() => this.#undone(error));
    }
    this.enter('done');
    return this.#outcome;
  }

  async #undone(error: unknown): Promise<LifecycleOutcome> {
    const failure = failureOf(error);
    this.enter('compensating');
    const compensationFailures = await this.undo.run();
    const named = { version: 1, vm: this.#vm, host: this.#host } as const;
    return failure.code === 'migration/cancelled'
      ? { ...named, kind: 'cancelled', compensationFailures }
      : { ...named, kind: 'failed', failure, compensationFailures };
  }
}
