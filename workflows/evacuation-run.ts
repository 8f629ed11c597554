/**
 * The state of one running evacuation inside its workflow: rows of VMs, messages, search
 * attributes, the text in the UI, commands to its moves. It knows nothing about the order of steps.
 */
import { defineSearchAttributeKey, SearchAttributeType } from '@temporalio/common';
import {
  ApplicationFailure, CancellationScope, condition, defineQuery, defineUpdate, setCurrentDetails,
  setHandler, upsertSearchAttributes,
} from '@temporalio/workflow';
import { evacuationMessages } from '../contracts/evacuation.ts';
import type {
  EvacuateHostInput, EvacuationCarried, EvacuationCommand, EvacuationOutcome, EvacuationPhase,
  EvacuationRow, EvacuationStatus, HostSurvey,
} from '../contracts/evacuation.ts';
import { failureFields, failureReport } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';
import { evacuationMoveRequest, migrationId } from '../contracts/identity.ts';
import type { VmName } from '../contracts/identity.ts';
import { migrationSearchAttributes } from '../contracts/migration.ts';
import type { MigrationOutcome, SessionCommand } from '../contracts/migration.ts';
import type { PlannedMove } from '../contracts/placement.ts';
import { evacuationPolicyAfter, evacuationRefusal } from './policy/evacuation-command.ts';
import { evacuationDetails } from './policy/evacuation-details.ts';
import {
  bandwidthPart, planWave, rowAfterMove, rowsAfterSurvey,
} from './policy/evacuation-plan.ts';
import { nextOpeningMs } from './policy/move-window.ts';
import { controlSteps } from './step-options.ts';

const keyword = (name: string): ReturnType<typeof defineSearchAttributeKey<'KEYWORD'>> =>
  defineSearchAttributeKey(name, SearchAttributeType.KEYWORD);
/** A VM that somebody else moves is looked at again so often, the longer the later, ms. */
const [busyLookMs, busyLookMsMax] = [2_000, 30_000];

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

const updates = {
  pause: defineUpdate<EvacuationStatus>(evacuationMessages.pause),
  resume: defineUpdate<EvacuationStatus>(evacuationMessages.resume),
  cancel: defineUpdate<EvacuationStatus, [{ by: string }]>(evacuationMessages.cancel),
  setBandwidth: defineUpdate<EvacuationStatus, [{ bandwidthBytesPerSecond: number }]>(
    evacuationMessages.setBandwidth,
  ),
  setConcurrency: defineUpdate<EvacuationStatus, [{ concurrency: number }]>(
    evacuationMessages.setConcurrency,
  ),
};
const statusQuery = defineQuery<EvacuationStatus>(evacuationMessages.status);

export class EvacuationRun {
  readonly input: EvacuateHostInput;
  readonly status: Mutable<EvacuationStatus>;
  /** Its moves run in it: a cancel of the evacuation ends those that can still be cancelled. */
  readonly moves = new CancellationScope({ cancellable: true });
  #queue: PlannedMove[] = [];
  /** Rises with everything that may let another move begin. */
  #changes = 0;
  #busyLooks = 0;
  #phaseTold: EvacuationPhase | null = null;
  /** Part of the bandwidth that the running moves have. */
  #partGiven: number;

  constructor(input: EvacuateHostInput) {
    this.input = input;
    const { host, request, policy, carried } = input;
    this.status = {
      version: 1, host, request, phase: 'survey', paused: carried?.paused ?? false, policy,
      rows: carried?.rows ?? [], opensAtMs: null, waitingFor: null,
      startedAtMs: carried?.startedAtMs ?? Date.now(), cancelledBy: null, outcome: null,
    };
    this.#partGiven = bandwidthPart(policy, this.status.rows);
  }

  get isCancelled(): boolean {
    return this.status.cancelledBy !== null;
  }
  get #movingCount(): number {
    return this.status.rows.filter(({ state }) => state === 'moving').length;
  }
  /** Nothing is left that could still be moved. */
  get isOver(): boolean {
    return !this.status.rows.some(({ state }) =>
      state === 'waiting' || state === 'busy' || state === 'moving');
  }
  /** The last survey gave nothing to begin. */
  get isIdle(): boolean {
    return this.#queue.length === 0;
  }
  get carried(): EvacuationCarried {
    const { startedAtMs, paused, rows } = this.status;
    return { startedAtMs, paused, rows };
  }

  enter(phase: EvacuationPhase, waitsFor: string | null): void {
    const { status } = this;
    status.phase = phase;
    if (waitsFor !== status.waitingFor?.what) {
      status.waitingFor = waitsFor === null ? null : { what: waitsFor, sinceMs: Date.now() };
    }
    this.#refresh();
    if (this.#phaseTold === phase) return;
    this.#phaseTold = phase;
    upsertSearchAttributes([
      { key: keyword(migrationSearchAttributes.phase), value: phase },
      { key: keyword(migrationSearchAttributes.source), value: status.host },
      { key: keyword(migrationSearchAttributes.outcome), value: status.outcome?.kind ?? 'running' },
    ]);
  }

  /** Runs a step that a cancel of the evacuation ends; null then. */
  async untilCancelled<Answer>(step: () => Promise<Answer>): Promise<Answer | null> {
    try {
      return await this.moves.run(step);
    } catch (error) {
      if (this.isCancelled) return null;
      throw error;
    }
  }

  /** Takes a survey in and plans the next wave from it. */
  take(survey: HostSurvey): void {
    const { status } = this;
    status.rows = rowsAfterSurvey(status.rows, survey);
    const { moves, rows } = planWave({
      rows: status.rows, survey, policy: status.policy, nowMs: Date.now() });
    status.rows = rows;
    this.#queue = [...moves];
    this.#share();
    this.#refresh();
  }

  /** The next move of the wave; null: it is over, and the ledger has to be looked at again. */
  next(): PlannedMove | null {
    return this.#queue.shift() ?? null;
  }

  /** Waits until another move may begin: a free slot, not paused, window open; or a cancel. */
  async untilMayBegin(): Promise<void> {
    while (!this.isCancelled) {
      const { status } = this;
      const hasSlot = this.#movingCount < status.policy.concurrency;
      status.opensAtMs = nextOpeningMs(status.policy.window, Date.now());
      if (hasSlot && !status.paused && status.opensAtMs === null) return;
      // What was planned may be stale when it goes on.
      if (status.paused || status.opensAtMs !== null) this.#queue = [];
      if (status.paused) this.enter(status.phase, '`resume`');
      else if (status.opensAtMs !== null) this.enter('window', 'the time in which moves may begin');
      const seen = this.#changes;
      const changed = (): boolean => this.#changes !== seen;
      if (status.opensAtMs === null) await condition(changed);
      else await condition(changed, status.opensAtMs - Date.now());
    }
  }

  /** Waits until a move has ended, a try is due, or a busy VM is to be looked at again. */
  async untilNews(): Promise<void> {
    const nowMs = Date.now();
    const dues = this.status.rows.flatMap(({ state, retryAtMs }) =>
      state === 'waiting' && retryAtMs !== null ? [retryAtMs] : []);
    if (this.status.rows.some(({ state }) => state === 'busy')) {
      dues.push(nowMs + Math.min(busyLookMsMax, busyLookMs * 2 ** this.#busyLooks));
      this.#busyLooks += 1;
    }
    const seen = this.#changes;
    const changed = (): boolean => this.#changes !== seen;
    if (dues.length === 0) await condition(changed);
    else await condition(changed, Math.max(1, Math.min(...dues) - nowMs));
  }

  /** A try begins; answers its row, with the id that it has. */
  begun({ vm, target }: PlannedMove): EvacuationRow {
    this.#busyLooks = 0;
    return this.#set(vm, (row) => {
      const attempts = row.attempts + 1;
      const migration = migrationId(vm, evacuationMoveRequest(this.input.request, attempts));
      return { ...row, state: 'moving', target, migration, attempts, retryAtMs: null,
        startedAtMs: Date.now(), endedAtMs: null };
    });
  }

  /** A try has ended. */
  ended(vm: VmName, outcome: MigrationOutcome | FailureReport): void {
    this.#set(vm, (row) => rowAfterMove(row, outcome, Date.now()));
    this.#share();
  }

  /** The part of the bandwidth that a move which begins now may have. */
  get bandwidthPart(): number {
    return bandwidthPart(this.status.policy, this.status.rows);
  }

  outcome(failure: FailureReport | null = null): EvacuationOutcome {
    const { host, rows, cancelledBy, startedAtMs } = this.status;
    const moved = rows.filter(({ state }) => state === 'moved');
    const skipped = rows.filter(({ state }) => state !== 'moved' && state !== 'left').map((row) => (
      { vm: row.vm, failure: row.failure ?? failureReport('migration/cancelled', 'not begun') }));
    return {
      version: 1, host, movedCount: moved.length, skipped, failure, by: cancelledBy,
      totalMs: Date.now() - startedAtMs,
      movesMs: moved.reduce((sum, { startedAtMs: from, endedAtMs: to }) =>
        sum + (to ?? 0) - (from ?? 0), 0),
      kind: failure !== null ? 'failed' : cancelledBy !== null ? 'cancelled'
        : skipped.length > 0 ? 'partial' : 'completed',
    };
  }

  end(outcome: EvacuationOutcome): void {
    this.status.outcome = outcome;
    this.status.waitingFor = null;
    this.enter('done', null);
  }

  #set(vm: VmName, change: (row: EvacuationRow) => EvacuationRow): EvacuationRow {
    const row = this.status.rows.find((one) => one.vm === vm);
    if (row === undefined) throw new TypeError(`${vm} is not in the evacuation`);
    const changed = change(row);
    this.status.rows = this.status.rows.map((one) => (one === row ? changed : one));
    this.#changes += 1;
    this.#refresh();
    return changed;
  }

  #refresh(): void {
    setCurrentDetails(evacuationDetails(this.status));
  }

  /** Gives the running moves their part anew where it has changed; a move that refuses is over. */
  #share(): void {
    const part = this.bandwidthPart;
    if (part === this.#partGiven) return;
    this.#partGiven = part;
    void this.#commandMoves({ kind: 'set-bandwidth', bandwidthBytesPerSecond: part });
  }

  async #commandMoves(command: SessionCommand): Promise<void> {
    const running = this.status.rows.filter(({ state }) => state === 'moving');
    await CancellationScope.nonCancellable(() => Promise.allSettled(running.map(
      ({ migration }) => migration === null ? Promise.resolve(false)
        : controlSteps.commandMove({ migration, command }),
    )));
  }

  /** Registers query and updates; to be called before the first step. */
  listen(): void {
    setHandler(statusQuery, () => this.status);
    const handle = <Args extends [] | [object]>(
      update: ReturnType<typeof defineUpdate<EvacuationStatus, Args>>,
      read: (...args: Args) => EvacuationCommand,
    ): void => setHandler(
      update,
      (...args: Args) => this.#command(read(...args)),
      { validator: (...args: Args) => this.#validate(read(...args)) },
    );
    handle(updates.pause, () => ({ kind: 'pause' }));
    handle(updates.resume, () => ({ kind: 'resume' }));
    handle(updates.cancel, ({ by }) => ({ kind: 'cancel', by }));
    handle(updates.setBandwidth, (input) => ({ ...input, kind: 'set-bandwidth' }));
    handle(updates.setConcurrency, (input) => ({ ...input, kind: 'set-concurrency' }));
    // Temporal's own Cancel (UI, tctl) is the same as the update, without an answer.
    CancellationScope.current().cancelRequested.catch(async () => {
      const command = { kind: 'cancel', by: 'a cancellation request in Temporal' } as const;
      if (this.#refusal(command) === null) await this.#command(command);
    });
  }

  #refusal(command: EvacuationCommand): ReturnType<typeof evacuationRefusal> {
    return evacuationRefusal(command, {
      phase: this.status.phase, cancelled: this.isCancelled });
  }

  #validate(command: EvacuationCommand): void {
    const refusal = this.#refusal(command);
    if (refusal === null) return;
    throw ApplicationFailure.create(failureFields(refusal.code, refusal.detail));
  }

  async #command(command: EvacuationCommand): Promise<EvacuationStatus> {
    const { status } = this;
    status.policy = evacuationPolicyAfter(status.policy, command);
    this.#changes += 1;
    if (command.kind === 'cancel') {
      if (!this.isCancelled) {
        status.cancelledBy = command.by;
        this.enter('cancelling', 'the moves under way');
        this.moves.cancel();
      }
    } else if (command.kind === 'pause' || command.kind === 'resume') {
      status.paused = command.kind === 'pause';
      await this.#commandMoves({ kind: command.kind });
    } else {
      this.#share();
    }
    this.#refresh();
    return status;
  }
}
