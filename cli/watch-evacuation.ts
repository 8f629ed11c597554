/** Follows an evacuation until it ends: a line of the whole, and one for each VM that ended. */
import type { EvacuationOutcome, EvacuationRow } from '../contracts/evacuation.ts';
import { CodedError } from '../contracts/failures.ts';
import { evacuationId } from '../contracts/identity.ts';
import type { HostName } from '../contracts/identity.ts';
import type { EvacuationView } from '../payloads/evacuation-client.ts';
import type { Workflows } from './backend.ts';
import { printable } from './output.ts';
import type { TextSink } from './output.ts';
import { formatMillis, percentBar } from './progress.ts';
import { plainLineEveryMs, silenceSince } from './watch.ts';
import type { WatchClock } from './watch.ts';

/** A look costs two calls a running move. */
const lookEveryMs = 1_000;

const hasEnded = ({ state }: EvacuationRow): boolean =>
  state === 'moved' || state === 'left' || state === 'skipped';

/** A VM's row in words. */
export function rowText(row: EvacuationRow, view: EvacuationView): string {
  const { vm, state, target, startedAtMs, endedAtMs, failure, migration } = row;
  if (state === 'moved') {
    return `${vm} → ${target ?? '?'} in ${formatMillis((endedAtMs ?? 0) - (startedAtMs ?? 0))}`;
  }
  if (state === 'moving') {
    const move = migration === null ? undefined : view.moves.get(migration);
    const etaMs = move?.progress?.etaMs ?? null;
    return `${vm} → ${target ?? '?'} ${move === undefined ? 'begins'
      : `${move.percent.toFixed(1)} % ${move.phase}`}`
      + (etaMs === null ? '' : `, ETA ${formatMillis(etaMs)}`);
  }
  return failure === null ? `${vm} ${state}`
    : `${vm} ${state}: ${failure.message} (${failure.code}): ${failure.detail}`;
}

/** The whole in one line; `percent` is the largest that was shown. */
export function evacuationLine({ status, progress }: EvacuationView, percent: number): string {
  const { counts, etaMs } = progress;
  const said = status.paused ? 'paused'
    : status.opensAtMs === null ? status.phase
      : `window opens ${new Date(status.opensAtMs).toISOString().replace(/:\d+\.\d+Z$/, 'Z')}`;
  return [
    percentBar(percent), said, `${counts.moved} of ${status.rows.length} moved`,
    ...(['moving', 'waiting', 'busy', 'left', 'skipped'] as const)
      .flatMap((state) => (counts[state] === 0 ? [] : [`${counts[state]} ${state}`])),
    ...(etaMs === null ? ['ETA: estimating'] : [`ETA ${formatMillis(etaMs)}`]),
  ].join('  ');
}

class EvacuationDisplay {
  readonly #sink: TextSink;
  readonly #now: () => number;
  readonly #told = new Set<string>();
  #percent = 0;
  #lastLineAtMs = -Infinity;

  constructor(sink: TextSink, now: () => number) {
    this.#sink = sink;
    this.#now = now;
  }

  show(view: EvacuationView): void {
    this.#percent = Math.max(this.#percent, view.progress.percent);
    const { columns } = this.#sink;
    for (const row of view.status.rows.filter(hasEnded)) {
      const key = `${row.vm} ${row.state} ${row.attempts}`;
      if (this.#told.has(key)) continue;
      this.#told.add(key);
      this.end();
      this.#sink.write(`${printable(rowText(row, view))}\n`);
    }
    const line = printable(evacuationLine(view, this.#percent));
    if (columns !== null) {
      this.#sink.write(`\r\u001b[2K${line.slice(0, Math.max(0, columns - 1))}`);
    } else if (this.#now() - this.#lastLineAtMs >= plainLineEveryMs) {
      this.#lastLineAtMs = this.#now();
      this.#sink.write(`${line}\n`);
    }
  }

  /** Ends the redrawn line. */
  end(): void {
    if (this.#sink.columns !== null) this.#sink.write('\r\u001b[2K');
  }
}

/**
 * Watches until the outcome is there. Failures: evacuation/unknown, temporal/unreachable after two
 * minutes of silence; the evacuation goes on in any case.
 */
export async function watchEvacuation({ workflows, host, sink, clock }: {
  readonly workflows: Workflows; readonly host: HostName; readonly sink: TextSink;
  readonly clock: WatchClock;
}): Promise<EvacuationOutcome> {
  const display = new EvacuationDisplay(sink, clock.now);
  let sinceMs: number | null = null;
  try {
    for (;;) {
      try {
        const view = await workflows.viewEvacuation(host);
        sinceMs = null;
        display.show(view);
        if (view.status.outcome !== null) return view.status.outcome;
        if (view.closedAs !== null) {
          throw new CodedError('migration/cancelled', `${evacuationId(host)} is `
            + `${view.closedAs}; its moves end by themselves, and the same command goes on`);
        }
      } catch (error) {
        sinceMs = silenceSince({ error, sinceMs, clock });
      }
      await clock.sleep(lookEveryMs);
    }
  } finally {
    display.end();
  }
}
