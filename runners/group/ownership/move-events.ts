/**
 * Rules of a migration: prepare, quiesced, ready, commit, abort, revert, declined, settle.
 * Each rule checks in this order: role, repeat, epoch, guard. The first writer wins; a repeat,
 * known by migration id and expected epoch, does nothing. Starts are tenure-events.ts.
 */
import type { HostName } from '../../../contracts/identity.ts';
import { localDisks } from '../../../contracts/runner.ts';
import { parseMigrationId } from '../../../contracts/identity.ts';
import { timing } from '../../../contracts/limits.ts';
import type { LedgerEvent, TransferRecord } from '../../../contracts/ownership.ts';
import type { Decision, VmCase } from './decision.ts';
import {
  changedRecord, decided, endMove, leaseFrom, moveOf, nextEpoch, proposingHost, refused, repeated,
  wrongEpoch, wrongRole,
} from './decision.ts';
import { canonicalJson } from './signing.ts';
import type { MoveRecord } from './state.ts';
import { ledgerBounds } from './state.ts';

type Of<K extends LedgerEvent['kind']> = Extract<LedgerEvent, { readonly kind: K }>;
type MoveEvent = Of<'quiesced' | 'ready' | 'commit' | 'abort' | 'revert' | 'declined' | 'settle'>;

/** Everything that source and target must agree about. */
export const sameTransfer = (a: TransferRecord, b: TransferRecord): boolean =>
  a.migration === b.migration && a.epoch === b.epoch && a.digest === b.digest
  && a.missingDigest === b.missingDigest && a.missingPageCount === b.missingPageCount
  && a.ioSequence.length === b.ioSequence.length
  && a.ioSequence.every((count, disk) => count === b.ioSequence[disk]);

/** Control opens a migration; consent to post-copy and the target's own commit come with it. */
export function decidePrepare(context: VmCase<Of<'prepare'>>): Decision {
  const { view, event, record, proposer } = context;
  const { entry } = record;
  if (proposer.role !== 'control') return wrongRole(record, proposer, event, 'control');
  if (parseMigrationId(event.migration)?.vm !== event.vm) {
    return refused(record, 'input/invalid', 'the migration id names another VM');
  }
  const known = moveOf(view, record, event.migration);
  if (known !== null) {
    if (known.end !== null) {
      return refused(record, 'ownership/refused', `that migration has ended: ${known.end}`);
    }
    return known.target === event.target && known.epoch === event.epoch
      ? repeated(view, record)
      : refused(record, 'migration/open', 'that migration is open with another target or epoch');
  }
  if (entry.phase !== 'owned') {
    return refused(record, 'migration/open', `${entry.migration} is open (${entry.phase})`);
  }
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.owner === event.target || entry.owner === null) {
    return refused(record, 'migration/same-host', `${entry.owner} owns it`);
  }
  const host = view.host(event.target);
  if (host === undefined) return refused(record, 'host/unknown', event.target);
  if (host.cordoned) return refused(record, 'host/cordoned', event.target);
  if (record.abortsAtEpoch >= ledgerBounds.abortsPerEpochMax) {
    return refused(
      record, 'ownership/refused', 'too many aborted moves under one epoch; restart the VM once',
    );
  }
  const move: MoveRecord = {
    migration: event.migration, vm: event.vm, epoch: entry.epoch, source: entry.owner,
    target: event.target, decision: null, end: null, quiescedAtMs: null, startedAtMs: null,
    declinedBy: null,
  };
  return decided(view, record, {
    vm: changedRecord(context, {
      phase: 'preparing', migration: event.migration, target: event.target, quiesced: null,
      ready: null, postCopyAllowed: event.postCopyAllowed, commitDelegated: event.commitDelegated,
    }, { move }),
  });
}

/** The move that an event is about, or the refusal when there is none. */
function findMove(context: VmCase<MoveEvent>): MoveRecord | Decision {
  const { view, record, event } = context;
  return moveOf(view, record, event.migration)
    ?? refused(record, 'ownership/refused', `${event.migration} is not a migration of this VM`);
}
const isMove = (found: MoveRecord | Decision): found is MoveRecord => 'migration' in found;

/** Refusal for an event that comes after the end, or before the phase that it needs. */
const notNow = (context: VmCase<MoveEvent>, move: MoveRecord): Decision => refused(
  context.record, 'ownership/refused',
  move.end === null
    ? `${context.event.kind} does not fit the phase ${context.record.entry.phase}`
    : `the migration has ended: ${move.end}`,
);

/** Source (quiesced) or target (ready) attests the transfer; either may come first. */
export function decideTransferRecord(context: VmCase<Of<'quiesced' | 'ready'>>): Decision {
  const { view, event, record, proposer, now, checks } = context;
  const { entry } = record;
  const move = findMove(context);
  if (!isMove(move)) return move;
  const signer: HostName = event.kind === 'quiesced' ? move.source : move.target;
  if (proposingHost(proposer) !== signer) {
    return wrongRole(record, proposer, event, `host/${signer}`);
  }
  const stands = record.move === move && move.end !== 'aborted' && move.end !== 'reverted';
  const stored = event.kind === 'quiesced' ? entry.quiesced : entry.ready;
  if (stands && stored !== null && canonicalJson(stored) === canonicalJson(event.record)) {
    return repeated(view, record);
  }
  if (!stands || entry.phase !== 'preparing') return notNow(context, move);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  const reason = recordObstacle(context, stored, signer);
  if (reason !== null) return refused(record, 'ownership/refused', reason);
  const publicKeyPem = view.host(signer)?.publicKeyPem;
  if (publicKeyPem === undefined) return refused(record, 'host/unknown', signer);
  if (!checks.transferRecord(event.record, publicKeyPem)) {
    return refused(record, 'ownership/refused', `the signature is not that of ${signer}`);
  }
  const vm = event.kind === 'quiesced'
    ? changedRecord(context, { quiesced: event.record }, {
      move: { ...move, quiescedAtMs: now.wallMs },
    })
    : changedRecord(context, { ready: event.record });
  return decided(view, record, { vm });
}

/** Why a record can't stand, null when it can (its signature is looked at after this). */
function recordObstacle(
  { event, record: { entry } }: VmCase<Of<'quiesced' | 'ready'>>,
  stored: TransferRecord | null,
  signer: HostName,
): string | null {
  const { record } = event;
  if (stored !== null) return `${signer} has attested something else before`;
  if (record.migration !== event.migration || record.epoch !== event.epoch) {
    return 'the signed record is of another migration or epoch';
  }
  const counted = record.ioSequence.length;
  const mirrored = localDisks(entry.spec).length;
  if (counted !== mirrored) {
    return `the record counts ${counted} disks, the VM has ${mirrored} to copy`;
  }
  if ((record.missingPageCount > 0) !== (record.missingDigest !== '')) {
    return 'missing pages and their digest do not go together';
  }
  if (record.missingPageCount > 0 && !entry.postCopyAllowed) {
    return 'pages are missing, but post-copy was not agreed to';
  }
  const other = event.kind === 'quiesced' ? entry.ready : entry.quiesced;
  return other === null || sameTransfer(record, other)
    ? null : 'source and target disagree about the transfer';
}

/** The point of no return: the target becomes owner of the next epoch. */
export function decideCommit(context: VmCase<Of<'commit'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry } = record;
  const move = findMove(context);
  if (!isMove(move)) return move;
  const isTarget = proposingHost(proposer) === move.target;
  if (proposer.role !== 'control' && !isTarget) {
    return wrongRole(record, proposer, event, `control or host/${move.target}`);
  }
  if (move.decision === 'commit' && move.end !== 'reverted' && move.epoch === event.epoch) {
    return repeated(view, record);
  }
  if (record.move !== move || entry.phase !== 'preparing') return notNow(context, move);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.quiesced === null || entry.ready === null) {
    const missing = entry.quiesced === null ? 'Quiesced' : 'Ready';
    return refused(record, 'ownership/refused', `${missing} is not recorded`);
  }
  if (!sameTransfer(entry.quiesced, entry.ready)) {
    return refused(record, 'ownership/refused', 'source and target disagree about the transfer');
  }
  const waitedMs = now.wallMs - (move.quiescedAtMs ?? now.wallMs);
  if (isTarget && !entry.commitDelegated && waitedMs < timing.blackoutSelfDecisionMs) {
    return wrongRole(record, proposer, event, 'control (the target after its patience)');
  }
  const { epoch, rest } = nextEpoch(record, 'commit');
  return decided(view, record, {
    vm: changedRecord(
      context,
      { phase: 'unsettled', epoch, owner: move.target, previous: entry.owner },
      { ...rest, move: { ...move, decision: 'commit' } },
    ),
    lease: leaseFrom(event.vm, now),
  });
}

/** Gives the migration up before its commit: the source goes on, under the same epoch. */
export function decideAbort(context: VmCase<Of<'abort'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry } = record;
  const move = findMove(context);
  if (!isMove(move)) return move;
  const isSource = proposingHost(proposer) === move.source;
  if (proposer.role !== 'control' && !isSource) {
    return wrongRole(record, proposer, event, `control or host/${move.source}`);
  }
  if (move.end === 'aborted' && move.epoch === event.epoch) return repeated(view, record);
  if (record.move !== move || entry.phase !== 'preparing') return notNow(context, move);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  // Without its Quiesced nothing can commit, so the source needs no patience before it.
  if (isSource && entry.quiesced !== null) {
    const waitedMs = now.wallMs - (move.quiescedAtMs ?? now.wallMs);
    if (waitedMs < timing.blackoutSelfDecisionMs) {
      return wrongRole(record, proposer, event, 'control (the source after its patience)');
    }
  }
  const ended = endMove(move, 'aborted');
  return decided(view, record, {
    vm: changedRecord(
      context, { phase: 'owned' }, { move: ended, abortsAtEpoch: record.abortsAtEpoch + 1 },
      event.reason,
    ),
    ended,
  });
}

/** Takes a commit back whose target has not started: the log decides between the two. */
export function decideRevert(context: VmCase<Of<'revert'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry } = record;
  const move = findMove(context);
  if (!isMove(move)) return move;
  if (proposer.role !== 'control' && proposingHost(proposer) !== move.source) {
    return wrongRole(record, proposer, event, `control or host/${move.source}`);
  }
  if (move.end === 'reverted' && event.epoch === move.epoch + 1) return repeated(view, record);
  if (record.move !== move || entry.phase !== 'unsettled') return notNow(context, move);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.lastStarted === entry.epoch) {
    return refused(record, 'ownership/refused', 'the target has started');
  }
  const { epoch, rest } = nextEpoch(record, 'revert');
  const ended = endMove(move, 'reverted');
  return decided(view, record, {
    vm: changedRecord(
      context,
      { phase: 'owned', epoch, owner: entry.previous, previous: entry.owner },
      { ...rest, move: ended }, event.reason,
    ),
    ended,
    lease: leaseFrom(event.vm, now),
  });
}

/** The target's start is taken back: its VMM is dead and ran no instruction. */
export function decideDeclined(context: VmCase<Of<'declined'>>): Decision {
  const { view, event, record, proposer, checks } = context;
  const { entry } = record;
  const move = findMove(context);
  if (!isMove(move)) return move;
  if (proposingHost(proposer) !== move.target) {
    return wrongRole(record, proposer, event, `host/${move.target}`);
  }
  if (move.declinedBy === event.incarnation && event.epoch === move.epoch + 1) {
    return repeated(view, record);
  }
  if (record.move !== move || entry.phase !== 'unsettled') return notNow(context, move);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.lastStarted !== entry.epoch || entry.startedBy !== event.incarnation) {
    return refused(record, 'ownership/refused', 'that incarnation has no start to take back');
  }
  const publicKeyPem = view.host(move.target)?.publicKeyPem;
  if (publicKeyPem === undefined || entry.previous === null) {
    return refused(record, 'host/unknown', move.target);
  }
  if (!checks.declined(event, event.signature, publicKeyPem)) {
    return refused(record, 'ownership/refused', `the signature is not that of ${move.target}`);
  }
  return decided(view, record, {
    vm: changedRecord(
      context,
      { lastStarted: entry.startedBefore, startedBy: null, diskHolder: entry.previous },
      { move: { ...move, declinedBy: event.incarnation, startedAtMs: null } },
    ),
  });
}

/** Ends a committed migration: the target runs with every page; only now may the source delete. */
export function decideSettle(context: VmCase<Of<'settle'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry } = record;
  const move = findMove(context);
  if (!isMove(move)) return move;
  const isTarget = proposingHost(proposer) === move.target;
  if (proposer.role !== 'control' && !isTarget) {
    return wrongRole(record, proposer, event, `control or host/${move.target}`);
  }
  if (move.end === 'committed' && event.epoch === move.epoch + 1) return repeated(view, record);
  if (record.move !== move || entry.phase !== 'unsettled') return notNow(context, move);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.lastStarted !== entry.epoch) {
    return refused(record, 'ownership/refused', 'the target has not started');
  }
  if ((entry.quiesced?.missingPageCount ?? 0) > 0 && event.missingPageCount !== 0) {
    return refused(record, 'ownership/refused', 'pages are still missing at the target');
  }
  const waitedMs = now.wallMs - (move.startedAtMs ?? now.wallMs);
  if (isTarget && waitedMs < ledgerBounds.settleSelfDecisionMs) {
    return wrongRole(record, proposer, event, 'control (the target after its patience)');
  }
  const ended = endMove(move, 'committed');
  return decided(view, record, {
    vm: changedRecord(context, { phase: 'owned' }, { move: ended }),
    ended,
  });
}
