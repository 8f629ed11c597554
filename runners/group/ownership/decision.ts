/** What every rule of the ledger gets and gives: the proposal with its context, the decision. */
import type { HostName, Identity, MigrationId, VmName } from '../../../contracts/identity.ts';
import type {
  Acceptance, LedgerEvent, MigrationEnd, Refusal, VmEntry,
} from '../../../contracts/ownership.ts';
import type { SignatureChecks } from './signing.ts';
import type { Change, EpochOrigin, LedgerView, Moment, MoveRecord, VmRecord } from './state.ts';
import { ledgerBounds } from './state.ts';

/** Who proposes, when the ledger looks at it, and how signatures are checked. */
export interface Circumstances {
  readonly proposer: Identity;
  readonly now: Moment;
  readonly checks: SignatureChecks;
  /** Length of leases; timing.leaseTtlMs unless a lab wants shorter ones. */
  readonly leaseTtlMs?: number;
}

/** `change` is null for a refusal and for a repeat. */
export interface Decision {
  readonly verdict: Acceptance | Refusal;
  readonly change: Change | null;
}

/** Context of a rule about an existing VM. */
export interface VmCase<E extends LedgerEvent = LedgerEvent> extends Circumstances {
  readonly view: LedgerView;
  readonly event: E;
  readonly record: VmRecord;
}

/** The entry as readers see it: a tombstone is no VM. */
export const visibleEntry = (record: VmRecord | undefined): VmEntry | null =>
  record === undefined || record.entry.phase === 'absent' ? null : record.entry;

export const refused = (
  record: VmRecord | undefined, code: Refusal['code'], reason: string,
): Decision => ({
  verdict: { accepted: false, code, reason, entry: visibleEntry(record) },
  change: null,
});

/** Accepted without effect: the event is in the log already. */
export const repeated = (view: LedgerView, record: VmRecord | undefined): Decision => ({
  verdict: { accepted: true, changed: false, index: view.index, entry: visibleEntry(record) },
  change: null,
});

export const decided = (
  view: LedgerView, record: VmRecord | undefined, change: Partial<Change>,
): Decision => ({
  verdict: {
    accepted: true, changed: true, index: view.index + 1,
    entry: visibleEntry(change.vm ?? record),
  },
  change: { vm: null, host: null, ended: null, lease: null, ...change },
});

/** The host that proposes, null when the proposer is not a host. */
export const proposingHost = (proposer: Identity): HostName | null =>
  proposer.role === 'host' ? (proposer.name as HostName) : null;

export const wrongRole = (
  record: VmRecord | undefined, proposer: Identity, event: LedgerEvent, who: string,
): Decision => refused(
  record, 'ownership/role',
  `${proposer.role}/${proposer.name} may not propose ${event.kind} now; ${who} may`,
);

export const wrongEpoch = (record: VmRecord, epoch: number): Decision => refused(
  record, 'ownership/refused',
  `the epoch is ${record.entry.epoch}, the proposal believes in ${epoch}`,
);

/** Bounded text of people and programs in `cause`. */
export function causeText(event: LedgerEvent, proposer: Identity, reason?: string): string {
  const text = `${event.kind} by ${proposer.role}/${proposer.name}`;
  return reason ? `${text}: ${reason.slice(0, ledgerBounds.reasonLengthMax)}` : text;
}

/** A record with a changed entry; cause and time always follow the event. */
export const changedRecord = (
  { record, event, proposer, now }: VmCase,
  entry: Partial<VmEntry>,
  rest: Partial<Omit<VmRecord, 'entry' | 'version'>> = {},
  reason?: string,
): VmRecord => ({
  ...record,
  ...rest,
  entry: {
    ...record.entry, ...entry,
    cause: causeText(event, proposer, reason), changedAtMs: now.wallMs,
  },
});

/** The record's migration if it is this one, else the ended one of that id and VM, else null. */
export function moveOf(
  view: LedgerView, record: VmRecord, migration: MigrationId,
): MoveRecord | null {
  if (record.move?.migration === migration) return record.move;
  const ended = view.ended(migration);
  return ended !== undefined && ended.vm === record.entry.vm ? ended : null;
}

/** Ends a migration; P5 rests on `end` being null before. */
export const endMove = (move: MoveRecord, end: MigrationEnd): MoveRecord => ({
  ...move, end, decision: move.decision ?? (end === 'aborted' ? 'abort' : 'commit'),
});

/** Where the next epoch comes from, and the counters that start again with it. */
export const nextEpoch = (
  record: VmRecord, kind: EpochOrigin['kind'], incarnation: EpochOrigin['incarnation'] = null,
): { readonly epoch: number; readonly rest: Partial<VmRecord> } => ({
  epoch: record.entry.epoch + 1,
  rest: {
    origin: { kind, fromEpoch: record.entry.epoch, incarnation },
    abortsAtEpoch: 0,
  },
});

export const leaseFrom = (vm: VmName, now: Moment): Change['lease'] => ({
  vm, renewedAtMs: now.steadyMs,
});
