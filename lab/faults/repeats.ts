/**
 * Requests that come twice or too late: what the control worker says to the ledger about a move,
 * said again with its certificate while the move is under way, and everything that it could have
 * said, once the move is over. Neither may change anything.
 */
import { hostName } from '../../contracts/identity.ts';
import type { MigrationId, VmName } from '../../contracts/identity.ts';
import type { Ledger, LedgerEvent, VmEntry } from '../../contracts/ownership.ts';

/** A move whose requests are repeated; `epoch` is the one before its commit. */
export interface RepeatedMove {
  readonly vm: VmName;
  readonly migration: MigrationId;
  readonly epoch: number;
  readonly target: string;
}

const prepareOf = ({ vm, migration, epoch, target }: RepeatedMove): LedgerEvent => ({
  kind: 'prepare', vm, migration, epoch, target: hostName(target), postCopyAllowed: false,
  commitDelegated: true,
});

/** Everything that control may say about a move. Pure. */
export function lateEvents(move: RepeatedMove): LedgerEvent[] {
  const { vm, migration, epoch } = move;
  const reason = 'a late request of the fault campaign';
  return [
    prepareOf(move),
    { kind: 'commit', vm, migration, epoch },
    { kind: 'abort', vm, migration, epoch, reason },
    { kind: 'revert', vm, migration, epoch: epoch + 1, reason },
    { kind: 'settle', vm, migration, epoch: epoch + 1, missingPageCount: 0 },
  ];
}

/** What of an entry a request could change, but for the time of its last change. Pure. */
const ownershipOf = (entry: VmEntry | null): string => JSON.stringify(entry);

/** Each alone, because a refusal ends a batch; answers the kinds that changed something. */
async function changesOf(ledger: Ledger, events: readonly LedgerEvent[]): Promise<string[]> {
  const changed: string[] = [];
  for (const event of events) {
    const [verdict] = await ledger.propose([event]);
    if (verdict?.accepted === true && verdict.changed) changed.push(event.kind);
  }
  return changed;
}

/** Says Prepare again while the move is under way; what it changed, null for nothing. */
export async function sayTwice(ledger: Ledger, move: RepeatedMove): Promise<string | null> {
  const changed = await changesOf(ledger, [prepareOf(move), prepareOf(move)]);
  return changed.length === 0 ? null : `a repeated ${changed.join(', ')} changed the ledger`;
}

/** Says everything after the end; what it changed, null for nothing. */
export async function sayLate(ledger: Ledger, move: RepeatedMove): Promise<string | null> {
  const before = ownershipOf(await ledger.readVm(move.vm));
  const changed = await changesOf(ledger, lateEvents(move));
  const after = ownershipOf(await ledger.readVm(move.vm));
  return changed.length === 0 && before === after ? null
    : `a late ${changed.join(', ') || 'request'} changed the ledger`;
}
