/**
 * What a source whose VM stands (Quiesced proposed) does next. Pure: it knows the ledger's entry,
 * what the target said and how long it was waited for, and answers with one step. The rule behind
 * it: the source resumes only on an abort or revert that it read from the ledger, never on a timer;
 * timers only decide what to propose.
 */
import type { HostName, MigrationId } from '../../../contracts/identity.ts';
import { timing } from '../../../contracts/limits.ts';
import type { MigrationPolicy } from '../../../contracts/migration.ts';
import type { VmEntry } from '../../../contracts/ownership.ts';

/** An answer takes a few ms; a read that took longer met a ledger that was away, ms. */
const ledgerSilentMs = 500;

/** Time that a target had for its answer. What the ledger was silent begins it anew: in that time
 * the target could not answer either. */
export class Patience {
  #sinceMs: number;

  constructor(nowMs: number) {
    this.#sinceMs = nowMs;
  }

  /** After a read of the ledger, which was asked and answered then. */
  waitedMs({ askedMs, answeredMs }: {
    readonly askedMs: number; readonly answeredMs: number;
  }): number {
    if (answeredMs - askedMs > ledgerSilentMs) this.#sinceMs = answeredMs;
    return answeredMs - this.#sinceMs;
  }
}

export interface SourceView {
  readonly host: HostName;
  readonly migration: MigrationId;
  /** Epoch under which the VM ran when it was stopped. */
  readonly epoch: number;
  /** Last linearizable read; null when the ledger knows no such VM (deleted under our feet). */
  readonly entry: VmEntry | null;
  /** The target said that its VMM goes on. */
  readonly targetRuns: boolean;
  /** The target said that it can't go on, or its link is gone; known before `entry` was read. */
  readonly targetGaveUp: boolean;
  /** Time that the target had for its answer: since Quiesced, and since the ledger was silent. */
  readonly waitedMs: number;
  /** Before this the source proposes nothing by itself, ms. */
  readonly selfDecisionMs: number;
}

/** How long a source waits for a Ready: comparing memory in the blackout takes its time. */
export const patienceMs = ({ exactness }: Pick<MigrationPolicy, 'exactness'>): number =>
  exactness === 'before-resume' ? timing.exactnessCheckMsMax : timing.blackoutSelfDecisionMs;

export type SourceStep =
  /** The target's start is in the ledger: forward only. */
  | { readonly kind: 'handed-over' }
  /** The ledger gave the VM back: run it under this epoch. */
  | { readonly kind: 'resume'; readonly epoch: number }
  | { readonly kind: 'propose-abort' }
  | { readonly kind: 'propose-revert' }
  | { readonly kind: 'wait' }
  /** The entry can't be ours any more: keep the image, touch nothing. */
  | { readonly kind: 'lost'; readonly reason: string };

/** The one step that follows from `view`. */
export function nextSourceStep(view: SourceView): SourceStep {
  const { entry, host, epoch, migration } = view;
  if (entry === null) return { kind: 'lost', reason: 'the ledger has no entry of the VM' };
  const impatient = view.targetGaveUp || view.waitedMs >= view.selfDecisionMs;

  if (entry.owner === host && entry.phase === 'owned') {
    return entry.epoch >= epoch
      ? { kind: 'resume', epoch: entry.epoch }
      : { kind: 'lost', reason: `the ledger is at epoch ${entry.epoch}, the image at ${epoch}` };
  }
  if (entry.phase === 'preparing') {
    if (entry.migration !== migration) {
      return { kind: 'lost', reason: `${entry.migration ?? 'another move'} is open` };
    }
    return impatient && entry.ready === null ? { kind: 'propose-abort' } : whileReady(view, entry);
  }
  if (entry.owner !== host && entry.migration === migration && entry.epoch === epoch + 1) {
    if (entry.lastStarted === entry.epoch) return whileStarted(view, entry);
    return impatient && entry.phase === 'unsettled' ? { kind: 'propose-revert' } : { kind: 'wait' };
  }
  return { kind: 'lost', reason: `owner is ${entry.owner ?? 'nobody'} at epoch ${entry.epoch}` };
}

/**
 * A start may still be declined until the target says that it runs, or can't be heard. In post-copy
 * nobody waits for that word: the target may need pages before it can say it.
 */
function whileStarted(view: SourceView, entry: VmEntry): SourceStep {
  const mayBeDeclined = entry.phase === 'unsettled' && (entry.ready?.missingPageCount ?? 0) === 0
    && !view.targetRuns && !view.targetGaveUp;
  return { kind: mayBeDeclined ? 'wait' : 'handed-over' };
}

/** Both records are in: only a target that gave up makes the source ask for an abort. */
function whileReady(view: SourceView, entry: VmEntry): SourceStep {
  return view.targetGaveUp && entry.ready !== null ? { kind: 'propose-abort' } : { kind: 'wait' };
}
