/** A VM's state in one word, for lists: does it run, and if not, why not. Pure, from the ledger. */
import type { VmEntry } from '../contracts/ownership.ts';
import type { Silence } from './explain.ts';

/** `starting`: wanted, and not started under its epoch; its VMM may have died a moment ago. */
export function vmState(entry: VmEntry, silence: Silence | null): string {
  if (entry.phase !== 'owned') return entry.phase;
  if (entry.desired === 'stopped') return 'stopped';
  if (silence !== null) return 'host-silent';
  return entry.lastStarted === entry.epoch ? 'running' : 'starting';
}

/** Names of those that should run and do not, as far as the ledger knows. */
export const waitingVms = (entries: readonly VmEntry[]): readonly VmEntry[] =>
  entries.filter((entry) => vmState(entry, null) === 'starting');
