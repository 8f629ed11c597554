/**
 * The state of one running move inside its workflow: status, messages, search attributes, the text
 * in the UI. It knows how a command reaches the session, and nothing about the order of steps.
 */
import { defineSearchAttributeKey, SearchAttributeType } from '@temporalio/common';
import {
  ApplicationFailure, CancellationScope, defineQuery, defineUpdate, setCurrentDetails, setHandler,
  sleep, upsertSearchAttributes, workflowInfo,
} from '@temporalio/workflow';
import { failureFields } from '../contracts/failures.ts';
import type { FailureCode } from '../contracts/failures.ts';
import { migrationMessages, migrationSearchAttributes } from '../contracts/migration.ts';
import type {
  MigrateVmInput, MigrationOutcome, MigrationPhase, MigrationStatus, SessionCommand,
  SessionProgress, StepInput,
} from '../contracts/migration.ts';
import { neverFalling, percentOf, refinedPhase } from '../contracts/migration-percent.ts';
import type { RunningVm } from '../contracts/runner.ts';
import { failureOf } from './failure-of.ts';
import { policyAfter, refusalOf } from './policy/accept-command.ts';
import { currentDetails } from './policy/current-details.ts';
import { nextLookMs, silenceMs } from './policy/history-budget.ts';
import { commandSteps } from './step-options.ts';

const keyword = (name: string): ReturnType<typeof defineSearchAttributeKey<'KEYWORD'>> =>
  defineSearchAttributeKey(name, SearchAttributeType.KEYWORD);

/** A cancel that the session has not obeyed by then is enforced through the ledger. */
const cancelGraceMs = 10_000;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

const updates = {
  pause: defineUpdate<MigrationStatus>(migrationMessages.pause),
  resume: defineUpdate<MigrationStatus>(migrationMessages.resume),
  cancel: defineUpdate<MigrationStatus, [{ by: string }]>(migrationMessages.cancel),
  setBandwidth: defineUpdate<MigrationStatus, [{ bandwidthBytesPerSecond: number }]>(
    migrationMessages.setBandwidth,
  ),
  setDowntimeBudget: defineUpdate<MigrationStatus, [{ downtimeBudgetMs: number }]>(
    migrationMessages.setDowntimeBudget,
  ),
  postCopyNow: defineUpdate<MigrationStatus>(migrationMessages.postCopyNow),
};
const statusQuery = defineQuery<MigrationStatus>(migrationMessages.status);

const coded = (code: FailureCode, detail: string): ApplicationFailure =>
  ApplicationFailure.create(failureFields(code, detail));

export class MigrationRun {
  readonly input: MigrateVmInput;
  readonly status: Mutable<MigrationStatus>;
  /** Set by the first step; every later step carries it. */
  step: StepInput | null = null;
  /** From the first proposal on the ledger has to be asked how the move ended. */
  mayBeReserved = false;
  cancelledBy: string | null = null;
  /** Commands in a row that the session did not answer, and until when no other is given to it. */
  #unansweredCount = 0;
  #silentUntilMs = 0;
  /** The scope of the step that runs now: what an enforced cancel ends. */
  #stepScope: CancellationScope | null = null;
  readonly #startedAtMs = workflowInfo().startTime.getTime();

  constructor(input: MigrateVmInput) {
    this.input = input;
    this.status = {
      version: 1,
      phase: 'preflight',
      vm: input.vm,
      source: null,
      target: input.target,
      engine: 'direct',
      percent: input.carried?.percent ?? 0,
      pointOfNoReturnPassed: false,
      policy: input.policy,
      size: null,
      progress: null,
      waitingFor: null,
      outcome: null,
    };
  }

  /** What is left of the request's deadline, at least 0. */
  get remainingMs(): number {
    return Math.max(0, this.#startedAtMs + this.input.policy.deadlineMs - Date.now());
  }

  located(step: StepInput): void {
    this.step = step;
    this.status.source = step.source;
  }

  sized({ memoryBytes, disks }: RunningVm): void {
    const diskBytes = disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    this.status.size = { memoryBytes, diskBytes };
  }

  /** Says who is waited for, for `novacron why`, without a new phase. */
  waitFor(what: string): void {
    this.status.waitingFor = { what, sinceMs: Date.now() };
    this.#refresh();
  }

  /** Enters a phase: search attributes, percent, the text in the UI. */
  enter(phase: MigrationPhase, waitsFor: string | null): void {
    const { status } = this;
    status.phase = phase;
    status.waitingFor = waitsFor === null ? null : { what: waitsFor, sinceMs: Date.now() };
    this.#refresh();
    upsertSearchAttributes([
      { key: keyword(migrationSearchAttributes.phase), value: phase },
      { key: keyword(migrationSearchAttributes.vm), value: status.vm },
      { key: keyword(migrationSearchAttributes.source), value: status.source ?? 'unknown' },
      { key: keyword(migrationSearchAttributes.target), value: status.target },
      { key: keyword(migrationSearchAttributes.engine), value: status.engine },
      { key: keyword(migrationSearchAttributes.outcome), value: status.outcome?.kind ?? 'running' },
    ]);
  }

  /** Runs a step so that an enforced cancel ends it; refuses to begin one after a cancel. */
  async interruptible<Answer>(step: () => Promise<Answer>): Promise<Answer> {
    if (this.cancelledBy !== null) throw coded('migration/cancelled', this.cancelledBy);
    const scope = new CancellationScope({ cancellable: true });
    this.#stepScope = scope;
    try {
      return await scope.run(step);
    } finally {
      this.#stepScope = null;
    }
  }

  /** Like `interruptible`, with a look at the session now and then for the UI's figures. */
  copying<Answer>(copy: () => Promise<Answer>): Promise<Answer> {
    return this.interruptible(async () => {
      const looks = new CancellationScope({ cancellable: true });
      const looking = looks.run(() => this.#look()).catch(() => undefined);
      try {
        return await copy();
      } finally {
        looks.cancel();
        await looking;
      }
    });
  }

  end(outcome: MigrationOutcome): MigrationOutcome {
    this.status.outcome = outcome;
    this.enter('done', null);
    return outcome;
  }

  async #look(): Promise<void> {
    for (let lookCount = 0; this.step !== null; lookCount += 1) {
      const waitMs = nextLookMs(lookCount, workflowInfo().historyLength);
      if (waitMs === null) return;
      await sleep(waitMs);
      this.#note(await commandSteps(this.step.source).peekSession(this.step).catch(() => null));
    }
  }

  #note(progress: SessionProgress | null): void {
    if (progress === null) return;
    this.status.progress = progress;
    this.#refresh();
  }

  #refresh(): void {
    const { status } = this;
    const isUndone = status.outcome !== null && status.outcome.kind !== 'completed';
    const fresh = isUndone ? 0 : percentOf(status.phase, status.progress, status.size);
    status.percent = neverFalling(status.percent, fresh);
    setCurrentDetails(currentDetails(this.#shown()));
  }

  #shown(): MigrationStatus {
    return { ...this.status, phase: refinedPhase(this.status.phase, this.status.progress) };
  }

  /** Registers query and updates; to be called before the first step. */
  listen(): void {
    setHandler(statusQuery, () => this.#shown());
    const handle = <Input>(
      update: ReturnType<typeof defineUpdate<MigrationStatus, [Input]>>,
      read: (input: Input) => SessionCommand,
    ): void => setHandler(
      update,
      (input: Input) => this.#command(read(input)),
      { validator: (input: Input) => this.#validate(read(input)) },
    );
    const plain = (
      update: ReturnType<typeof defineUpdate<MigrationStatus>>,
      command: SessionCommand,
    ): void => setHandler(
      update,
      () => this.#command(command),
      { validator: () => this.#validate(command) },
    );
    plain(updates.pause, { kind: 'pause' });
    plain(updates.resume, { kind: 'resume' });
    plain(updates.postCopyNow, { kind: 'post-copy-now' });
    handle(updates.cancel, ({ by }) => ({ kind: 'cancel', by }));
    handle(updates.setBandwidth, (input) => ({ ...input, kind: 'set-bandwidth' }));
    handle(updates.setDowntimeBudget, (input) => ({ ...input, kind: 'set-downtime-budget' }));
    // Temporal's own Cancel (UI, tctl) is the same as the update, without an answer.
    CancellationScope.current().cancelRequested.catch(async () => {
      const command: SessionCommand = { kind: 'cancel', by: 'a cancellation request in Temporal' };
      if (this.#refusal(command) === null) {
        await CancellationScope.nonCancellable(() => this.#command(command)).catch(() => undefined);
      }
    });
  }

  #refusal(command: SessionCommand): ReturnType<typeof refusalOf> {
    const { phase, pointOfNoReturnPassed, policy } = this.status;
    return refusalOf(command, {
      phase, pointOfNoReturnPassed, policy,
      cancelled: this.cancelledBy !== null,
      historyEvents: workflowInfo().historyLength,
      silentForMs: Math.max(0, this.#silentUntilMs - Date.now()),
    });
  }

  #validate(command: SessionCommand): void {
    const refusal = this.#refusal(command);
    if (refusal !== null) throw coded(refusal.code, refusal.detail);
  }

  async #command(command: SessionCommand): Promise<MigrationStatus> {
    const { phase } = this.status;
    const isCopying = phase === 'copy-disk' || phase === 'copy-memory';
    if (command.kind === 'cancel') {
      await this.#cancel(command, isCopying);
    } else if (isCopying && this.step !== null) {
      await this.#commandSession(this.step, command);
    }
    this.status.policy = policyAfter(this.status.policy, command);
    return this.#shown();
  }

  async #commandSession(step: StepInput, command: SessionCommand): Promise<void> {
    try {
      await commandSteps(step.source).commandSession({ ...step, command });
      this.#unansweredCount = 0;
    } catch (error) {
      const { code, detail } = failureOf(error);
      const isAnswer = code === 'migration/past-return' || code === 'input/invalid';
      this.#unansweredCount = isAnswer ? 0 : this.#unansweredCount + 1;
      this.#silentUntilMs = isAnswer ? 0 : Date.now() + silenceMs(this.#unansweredCount);
      throw coded(code, detail);
    }
  }

  /**
   * While copying the session decides between cancel and switchover, and its refusal is the
   * answer. A session that can't be reached, or does not obey, loses its step; then the ledger
   * decides (Abort against Commit).
   */
  async #cancel(command: SessionCommand & { kind: 'cancel' }, isCopying: boolean): Promise<void> {
    if (this.cancelledBy !== null) return;
    const step = this.step;
    if (!isCopying || step === null) {
      this.cancelledBy = command.by;
      this.#stepScope?.cancel();
      return;
    }
    try {
      await this.#commandSession(step, command);
      this.cancelledBy = command.by;
    } catch (error) {
      const { code } = failureOf(error);
      if (code === 'migration/past-return') throw error;
      this.cancelledBy = command.by;
      this.#stepScope?.cancel();
      return;
    }
    const scope = this.#stepScope;
    void sleep(cancelGraceMs).then(() => scope !== null && scope === this.#stepScope
      ? scope.cancel() : undefined);
  }
}
