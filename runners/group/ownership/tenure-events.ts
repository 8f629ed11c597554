/**
 * Rules of holding a VM: create, delete, desire, started, restart, failover, renew.
 * A start is an entry of the log, so that no revert can resume memory that has gone on elsewhere.
 */
import type { Incarnation } from '../../../contracts/identity.ts';
import { outlivesItsHost } from '../../../contracts/runner.ts';
import { timing } from '../../../contracts/limits.ts';
import type { LedgerEvent } from '../../../contracts/ownership.ts';
import type { Circumstances, Decision, VmCase } from './decision.ts';
import {
  causeText, changedRecord, decided, endMove, leaseFrom, nextEpoch, proposingHost, refused,
  repeated, visibleEntry, wrongEpoch, wrongRole,
} from './decision.ts';
import { leaseRunOut } from './leases.ts';
import { canonicalJson } from './signing.ts';
import type { LedgerView, MoveRecord, VmRecord } from './state.ts';
import { ledgerBounds } from './state.ts';

type Of<K extends LedgerEvent['kind']> = Extract<LedgerEvent, { readonly kind: K }>;

/** Makes a VM, stopped, or refuses because the name is taken; a tombstone's epoch goes on. */
export function decideCreate(
  view: LedgerView, event: Of<'create'>, { proposer, now }: Circumstances,
): Decision {
  const old = view.vm(event.vm);
  if (proposer.role !== 'control') return wrongRole(old, proposer, event, 'control');
  if (old !== undefined && old.entry.phase !== 'absent') {
    const same = old.origin.kind === 'create' && old.entry.owner === event.host
      && canonicalJson(old.entry.spec) === canonicalJson(event.spec);
    return same ? repeated(view, old) : refused(old, 'vm/exists', event.vm);
  }
  if (event.spec.name !== event.vm) {
    return refused(old, 'input/invalid', 'the spec names another VM');
  }
  const host = view.host(event.host);
  if (host === undefined) return refused(old, 'host/unknown', event.host);
  if (host.cordoned) return refused(old, 'host/cordoned', event.host);
  if (old === undefined && view.vmCount >= ledgerBounds.vmCountMax) {
    return refused(old, 'ownership/refused', `${ledgerBounds.vmCountMax} VM names were used`);
  }
  const fromEpoch = old?.entry.epoch ?? 0;
  const vm: VmRecord = {
    version: 1,
    entry: {
      version: 1, vm: event.vm, phase: 'owned', epoch: fromEpoch + 1, owner: event.host,
      previous: null, migration: null, target: null, lastStarted: 0, startedBefore: 0,
      startedBy: null, diskHolder: event.host, quiesced: null, ready: null,
      postCopyAllowed: false, commitDelegated: false, desired: 'stopped', spec: event.spec,
      cause: causeText(event, proposer), changedAtMs: now.wallMs,
    },
    move: null,
    origin: { kind: 'create', fromEpoch, incarnation: null },
    abortsAtEpoch: 0,
  };
  return decided(view, old, { vm, lease: leaseFrom(event.vm, now) });
}

/** Forgets a stopped VM but for its name and epoch. */
export function decideDelete(
  view: LedgerView, event: Of<'delete'>, circumstances: Circumstances,
): Decision {
  const { proposer } = circumstances;
  const record = view.vm(event.vm);
  if (proposer.role !== 'control') return wrongRole(record, proposer, event, 'control');
  if (record === undefined) return refused(record, 'vm/unknown', event.vm);
  const { entry } = record;
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.phase === 'absent') return repeated(view, record);
  if (entry.phase !== 'owned') {
    return refused(record, 'migration/open', `${entry.migration} is open (${entry.phase})`);
  }
  if (entry.desired !== 'stopped') {
    return refused(record, 'ownership/refused', 'it is not to be stopped');
  }
  const context: VmCase = { ...circumstances, view, event, record };
  return decided(view, record, { vm: changedRecord(context, { phase: 'absent', owner: null }) });
}

/** Says whether the VM shall run; the owner may report that its guest shut down by itself. */
export function decideDesire(context: VmCase<Of<'desire'>>): Decision {
  const { view, event, record, proposer } = context;
  const isOwner = proposingHost(proposer) === record.entry.owner;
  if (proposer.role !== 'control' && !(isOwner && event.desired === 'stopped')) {
    return wrongRole(record, proposer, event, 'control (the owner: stopped only)');
  }
  if (record.entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (record.entry.desired === event.desired) return repeated(view, record);
  return decided(view, record, { vm: changedRecord(context, { desired: event.desired }) });
}

/** Why this image (or none, for a cold start) may not start; null when it may. */
function imageObstacle({ entry, origin }: VmRecord, imageStamp: number | null): string | null {
  if (imageStamp === null) {
    return entry.owner === entry.diskHolder || outlivesItsHost(entry.spec)
      ? null : `a cold start needs the disk, which is on ${entry.diskHolder}`;
  }
  if (origin.kind === 'failover' && entry.owner !== entry.diskHolder) {
    return 'after a failover to another host it boots cold';
  }
  // A VM that never started has no image; 0 is no stamp.
  return imageStamp === entry.lastStarted && imageStamp > 0
    ? null : `the image ran last under epoch ${imageStamp}, the VM under ${entry.lastStarted}`;
}

/** The owner is about to run the first instruction; nothing else may run from now on. */
export function decideStarted(context: VmCase<Of<'started'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry, move } = record;
  if (proposingHost(proposer) !== entry.owner) {
    return wrongRole(record, proposer, event, `host/${entry.owner}`);
  }
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.phase !== 'owned' && entry.phase !== 'unsettled') {
    return refused(record, 'ownership/refused', `nothing starts while it is ${entry.phase}`);
  }
  if (entry.desired !== 'running') {
    return refused(record, 'ownership/refused', 'it is to be stopped');
  }
  if (entry.lastStarted === entry.epoch) {
    return entry.startedBy === event.incarnation
      ? repeated(view, record)
      : refused(
        record, 'ownership/refused',
        'another incarnation has started under this epoch; restart it to get a new one',
      );
  }
  if (entry.phase === 'unsettled' && move?.declinedBy === event.incarnation) {
    return refused(record, 'ownership/refused', 'that incarnation was declared dead');
  }
  const obstacle = imageObstacle(record, event.imageStamp);
  if (obstacle !== null) return refused(record, 'ownership/refused', obstacle);
  const open = move !== null && move.end === null;
  return decided(view, record, {
    vm: changedRecord(
      context,
      {
        lastStarted: entry.epoch, startedBefore: entry.lastStarted,
        startedBy: event.incarnation, diskHolder: entry.owner ?? entry.diskHolder,
      },
      { move: open ? { ...move, startedAtMs: now.wallMs } : move },
      record.origin.kind === 'restart' ? `cold, after ${entry.cause}` : undefined,
    ),
  });
}

/** End of an open migration when its VM gets a new epoch another way. */
function moveAfterEpochChange(record: VmRecord): MoveRecord | null {
  const { entry, move } = record;
  if (move === null || move.end !== null) return null;
  if (entry.phase === 'preparing') return endMove(move, 'aborted');
  return endMove(move, entry.lastStarted === entry.epoch ? 'committed' : 'reverted');
}

const madeBy = (
  record: VmRecord,
  kind: 'restart' | 'failover',
  from: { readonly epoch: number; readonly incarnation: Incarnation | null },
): boolean =>
  record.origin.kind === kind && record.origin.fromEpoch === from.epoch
  && record.origin.incarnation === from.incarnation;

/**
 * The owner has reaped the VMM (`incarnation`, the one that had started) and will boot cold under a
 * new epoch. From unsettled it ends the migration as committed: its memory is gone on both sides.
 */
export function decideRestart(context: VmCase<Of<'restart'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry } = record;
  if (proposingHost(proposer) !== entry.owner) {
    return wrongRole(record, proposer, event, `host/${entry.owner}`);
  }
  if (madeBy(record, 'restart', event)) return repeated(view, record);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (entry.phase === 'preparing') {
    return refused(record, 'migration/open', `${entry.migration} has to be aborted first`);
  }
  if (entry.lastStarted !== entry.epoch || entry.startedBy !== event.incarnation) {
    return refused(record, 'ownership/refused', 'that incarnation is not the one that started');
  }
  const { epoch, rest } = nextEpoch(record, 'restart', event.incarnation);
  const ended = moveAfterEpochChange(record);
  return decided(view, record, {
    vm: changedRecord(
      context, { phase: 'owned', epoch }, { ...rest, move: ended ?? record.move }, event.reason,
    ),
    ended,
    lease: leaseFrom(event.vm, now),
  });
}

/** Gives the VM to a host that can reach its disk, once its owner provably can't run it. */
export function decideFailover(context: VmCase<Of<'failover'>>): Decision {
  const { view, event, record, proposer, now } = context;
  const { entry } = record;
  if (proposer.role !== 'control' && proposer.role !== 'operator') {
    return wrongRole(record, proposer, event, 'control or an operator');
  }
  const same = { epoch: event.epoch, incarnation: null };
  if (madeBy(record, 'failover', same) && entry.owner === event.to) return repeated(view, record);
  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  if (view.host(event.to) === undefined) return refused(record, 'host/unknown', event.to);
  if (event.to !== entry.diskHolder && !outlivesItsHost(entry.spec)) {
    return refused(
      record, 'ownership/refused', `only ${entry.diskHolder} holds the disk of this VM`,
    );
  }
  const fenced = event.fenceProof !== null && event.fenceProof.trim() !== '';
  const renewedAtMs = view.leaseRenewedAtMs(event.vm);
  const leaseOut = entry.spec.failover === 'automatic'
    && leaseRunOut({ renewedAtMs, nowMs: now.steadyMs, ttlMs: context.leaseTtlMs });
  if (!fenced && !leaseOut) {
    const why = entry.spec.failover === 'automatic'
      ? `the lease of ${entry.owner} has not run out` : 'its owner holds no lease that binds it';
    const code = entry.spec.failover === 'automatic' ? 'ownership/lease' : 'ownership/refused';
    return refused(record, code, `${why}, and there is no fence proof`);
  }
  const { epoch, rest } = nextEpoch(record, 'failover');
  const ended = moveAfterEpochChange(record);
  const reason = fenced ? `fenced: ${event.fenceProof}` : 'the lease has run out';
  return decided(view, record, {
    vm: changedRecord(
      context,
      { phase: 'owned', epoch, owner: event.to, previous: entry.owner },
      { ...rest, move: ended ?? record.move }, reason,
    ),
    ended,
    lease: leaseFrom(event.vm, now),
  });
}

/** Keeps the owner's lease alive; nothing durable, see leases.ts. */
export function decideRenew(context: VmCase<Of<'renew'>>): Decision {
  const { view, event, record, proposer, now } = context;
  if (proposingHost(proposer) !== record.entry.owner) {
    return wrongRole(record, proposer, event, `host/${record.entry.owner}`);
  }
  if (record.entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);
  return {
    verdict: {
      accepted: true, changed: false, index: view.index, entry: visibleEntry(record),
      leaseTtlMs: context.leaseTtlMs ?? timing.leaseTtlMs,
    },
    change: { vm: null, host: null, ended: null, lease: leaseFrom(event.vm, now) },
  };
}
