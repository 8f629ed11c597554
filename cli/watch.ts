/**
 * Follows a move until it ends: asks, draws, asks again. A terminal gets one line that is redrawn,
 * everything else a line per change worth reading. It never ends the move: Ctrl-C only looks away.
 */
import { CodedError } from '../contracts/failures.ts';
import type { FailureCode } from '../contracts/failures.ts';
import type { MigrationId } from '../contracts/identity.ts';
import type { MigrationOutcome } from '../contracts/migration.ts';
import type { MoveView, Workflows } from './backend.ts';
import { failureOfError } from './failure-of-error.ts';
import type { TextSink } from './output.ts';
import { printable } from './output.ts';
import { adviceLines, outlookAdvice, type OutlookAdvice } from './outlook.ts';
import { nextView, progressLine } from './progress.ts';
import type { ProgressView } from './progress.ts';

/** A person reads no faster; a query costs the worker a few milliseconds. */
const lookEveryMs = 500;
/** Plain lines: one at each change of phase, and one this often. */
export const plainLineEveryMs = 5_000;
/**
 * Temporal or the worker may be restarted in mid-move; looking goes on for this long without it.
 */
const silenceMsMax = 120_000;
/** A guest has busy moments: what is seen this often in a row is told. */
const adviseAfterLooks = 4;
/** What nobody answering looks like from here. */
const silentCodes: readonly FailureCode[] = [
  'temporal/unreachable', 'control/unreachable', 'host/unreachable', 'internal'];

/** Time and interruption as arguments. */
export interface WatchClock {
  readonly now: () => number;
  readonly sleep: (ms: number) => Promise<void>;
}

/** Draws views on a sink. */
export class ProgressDisplay {
  readonly #sink: TextSink;
  readonly #now: () => number;
  #shown: ProgressView | null = null;
  #lastLineAtMs = -Infinity;
  #lastPhase = '';
  #drawn = false;
  #badLooks = 0;

  constructor(sink: TextSink, now: () => number) {
    this.#sink = sink;
    this.#now = now;
  }

  /** The picture last shown. */
  get view(): ProgressView | null {
    return this.#shown;
  }

  /** Draws a move; `migration` is how advice names it. */
  show(move: MoveView, migration: string): void {
    this.#shown = nextView(
      this.#shown, { status: move.status, heartbeat: null, check: move.check });
    this.#advise(outlookAdvice({ migration, status: move.status }));
    const line = printable(progressLine(this.#shown, this.#sink.columns));
    if (this.#sink.columns !== null) {
      this.#sink.write(`\r\u001b[2K${line}`);
      this.#drawn = true;
      return;
    }
    const due = this.#now() - this.#lastLineAtMs >= plainLineEveryMs;
    if (!due && this.#lastPhase === this.#shown.phase) return;
    this.#lastLineAtMs = this.#now();
    this.#lastPhase = this.#shown.phase;
    this.#sink.write(`${line}\n`);
  }

  /** Says once that the move will not end by itself, and again if it was expected to in between. */
  #advise(advice: OutlookAdvice | null): void {
    this.#badLooks = advice === null ? 0 : this.#badLooks + 1;
    if (advice === null || this.#badLooks !== adviseAfterLooks) return;
    this.end();
    for (const line of adviceLines(advice)) this.#sink.write(`${printable(line)}\n`);
  }

  /** Ends the redrawn line. */
  end(): void {
    if (this.#drawn) this.#sink.write('\r\u001b[2K');
    this.#drawn = false;
  }
}

/** Passes the error on unless nobody answered; then answers since when, within the limit. */
export function silenceSince(
  { error, sinceMs, clock }: { error: unknown; sinceMs: number | null; clock: WatchClock },
): number {
  const { code, detail } = failureOfError(error);
  if (!silentCodes.includes(code)) throw error;
  const since = sinceMs ?? clock.now();
  if (clock.now() - since <= silenceMsMax) return since;
  throw new CodedError('temporal/unreachable', `${detail}; what is watched goes on`, error);
}

/** Waits for the end, through restarts of Temporal. */
async function outcomeThroughSilence(
  { workflows, migration, clock }:
    { workflows: Workflows; migration: MigrationId; clock: WatchClock },
): Promise<MigrationOutcome> {
  let sinceMs: number | null = null;
  for (;;) {
    const askedAtMs = clock.now();
    try {
      return await workflows.outcomeOf(migration);
    } catch (error) {
      // A long poll that stood for a while means that somebody was there in between.
      if (clock.now() - askedAtMs > silenceMsMax / 2) sinceMs = null;
      sinceMs = silenceSince({ error, sinceMs, clock });
      await clock.sleep(lookEveryMs);
    }
  }
}

/**
 * Watches until the outcome is there. Failures: migration/unknown, migration/cancelled (terminated
 * from outside), temporal/unreachable after two minutes of silence; the move goes on in any case.
 */
export async function watchMove({ workflows, migration, sink, clock }: {
  readonly workflows: Workflows; readonly migration: MigrationId; readonly sink: TextSink;
  readonly clock: WatchClock;
}): Promise<MigrationOutcome> {
  const display = new ProgressDisplay(sink, clock.now);
  const ended = outcomeThroughSilence({ workflows, migration, clock }).then(
    (outcome) => ({ outcome }), (error: unknown) => ({ error }));
  let sinceMs: number | null = null;
  try {
    for (;;) {
      const seen = await Promise.race([ended, workflows.viewMove(migration).then(
        (view) => ({ view }), (failure: unknown) => ({ failure }))]);
      if ('outcome' in seen) return seen.outcome;
      if ('error' in seen) throw seen.error;
      if ('view' in seen) {
        sinceMs = null;
        display.show(seen.view, migration);
      } else {
        sinceMs = silenceSince({ error: seen.failure, sinceMs, clock });
      }
      await Promise.race([clock.sleep(lookEveryMs), ended]);
    }
  } finally {
    display.end();
  }
}
