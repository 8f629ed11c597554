/**
 * Checks a ledger's directory without changing it: checksums and order of the log, and every step
 * in it against the specification, so that a mistake of ours would show too.
 */
import type { VmName } from '../../../contracts/identity.ts';
import { actionsOfEvent, modelActions } from '../ownership/model-actions.ts';
import type { LedgerState, LogLine } from '../ownership/state.ts';
import { loadLiveLog } from './durable-log.ts';
import type { LogStorage } from './log-storage.ts';

/** Problems listed at most; the first one is what counts. */
const problemCountMax = 100;

export interface VerifyReport {
  readonly version: 1;
  readonly index: number;
  readonly checkpoint: string | null;
  readonly segments: readonly string[];
  readonly lineCount: number;
  readonly tornBytes: number;
  readonly vmCount: number;
  readonly hostCount: number;
  readonly problems: readonly string[];
}

/** What is wrong with a line that follows `before`; null when nothing is. */
export function lineProblem(line: LogLine, before: LedgerState): string | null {
  const { vm: record, ended } = line.change;
  if (ended !== null) {
    const known = before.ended(ended.migration);
    if (known !== undefined && known.end !== ended.end) {
      return `${ended.migration} ended twice: ${known.end}, then ${ended.end}`;
    }
  }
  if (record === null) return null;
  const old = before.vm(record.entry.vm as VmName)?.entry ?? null;
  if (old !== null && record.entry.epoch < old.epoch) {
    return `the epoch of ${old.vm} falls from ${old.epoch} to ${record.entry.epoch}`;
  }
  const allowed = actionsOfEvent[line.event.kind] ?? [];
  const taken = modelActions(old, record.entry);
  return taken.some((action) => allowed.includes(action))
    ? null
    : `${line.event.kind} of ${record.entry.vm} is no step of the specification`
      + ` (${taken.join(', ') || 'none'})`;
}

/** Reads everything; throws `internal` on damage, lists steps that the specification forbids. */
export async function verifyLedger(storage: LogStorage): Promise<VerifyReport> {
  const problems = new Set<string>();
  const { state, tail, checkpoint, segments, lineCount } = await loadLiveLog(
    storage, (line, before) => {
      const problem = lineProblem(line, before);
      if (problem !== null && problems.size < problemCountMax) {
        problems.add(`line ${line.index}: ${problem}`);
      }
    });
  return {
    version: 1, index: state.index, checkpoint, segments, lineCount,
    tornBytes: tail?.tornBytes ?? 0, vmCount: state.vmCount, hostCount: state.hostCount,
    problems: [...problems],
  };
}
