/**
 * The ledger's part of the model-checked specification (docs/models/VmLedgerLocal.tla) as
 * predicates over two entries of one VM, before and after. Written from the specification and not
 * from decide.ts: tests and the `verify` command hold the two against each other.
 */
import type { HostName } from '../../../contracts/identity.ts';
import type { VmEntry } from '../../../contracts/ownership.ts';

/** Actions of the specification that change the ledger, and steps that it does not see. */
export type ModelAction =
  | 'Init' | 'Prepare' | 'SendReady' | 'Commit' | 'Abort' | 'RecStart' | 'Settle' | 'Failover'
  | 'Revert' | 'Decline'
  /** The variables of the specification stay as they are (desired state, Quiesced, repeats). */
  | 'Stutter'
  /** Outside the specification: the VM ends. */
  | 'Delete';

/** The variables st, ep, own, prev, started, lastst, hold of the specification. */
interface ModelVariables {
  readonly st: VmEntry['phase'];
  readonly ep: number;
  readonly own: HostName | null;
  readonly prev: HostName | null;
  readonly started: number;
  readonly lastst: number;
  readonly hold: HostName;
}
const variables = (entry: VmEntry): ModelVariables => ({
  st: entry.phase, ep: entry.epoch, own: entry.owner, prev: entry.previous,
  started: entry.lastStarted, lastst: entry.startedBefore, hold: entry.diskHolder,
});
const equal = (a: ModelVariables, b: ModelVariables): boolean =>
  (Object.keys(a) as (keyof ModelVariables)[]).every((key) => a[key] === b[key]);

interface Step {
  readonly before: VmEntry;
  readonly after: VmEntry;
  readonly b: ModelVariables;
  readonly a: ModelVariables;
}

const actions: Readonly<Record<
  'Prepare' | 'Commit' | 'Abort' | 'RecStart' | 'Settle' | 'Failover' | 'Revert' | 'Decline',
  (step: Step) => boolean
>> = {
  Prepare: ({ b, a, before, after }) =>
    b.st === 'owned' && after.target !== b.own && after.target !== null
    && after.migration !== null && after.migration !== before.migration
    && after.ready === null && after.quiesced === null
    && equal(a, { ...b, st: 'preparing' }),
  Commit: ({ b, a, before }) =>
    b.st === 'preparing' && before.ready !== null && before.quiesced !== null
    && before.ready.digest === before.quiesced.digest
    && before.ready.migration === before.migration
    && equal(a, { ...b, st: 'unsettled', prev: b.own, own: before.target, ep: b.ep + 1 }),
  Abort: ({ b, a }) => b.st === 'preparing' && equal(a, { ...b, st: 'owned' }),
  RecStart: ({ b, a }) =>
    (b.st === 'owned' || b.st === 'unsettled') && b.own !== null
    && equal(a, {
      ...b, started: b.ep, lastst: b.started === b.ep ? b.lastst : b.started, hold: b.own,
    }),
  Settle: ({ b, a }) =>
    b.st === 'unsettled' && b.started === b.ep && equal(a, { ...b, st: 'owned' }),
  Failover: ({ b, a }) =>
    b.st !== 'absent' && (a.own === b.hold
      || (b.st === 'unsettled' && b.started < b.ep && a.own === b.prev))
    && (equal(a, { ...b, st: 'owned', own: a.own, prev: b.own, ep: b.ep + 1 })
      // Restart is a failover of the owner to itself, with its reaped VMM as evidence.
      || (a.own === b.own && equal(a, { ...b, st: 'owned', ep: b.ep + 1 }))),
  Revert: ({ b, a }) =>
    b.st === 'unsettled' && b.started < b.ep
    && equal(a, { ...b, st: 'owned', own: b.prev, prev: b.own, ep: b.ep + 1 }),
  Decline: ({ b, a }) =>
    b.st === 'unsettled' && b.started === b.ep && b.prev !== null
    && equal(a, { ...b, started: b.lastst, hold: b.prev }),
};

function isInit(before: VmEntry | null, after: VmEntry): boolean {
  const fresh = after.phase === 'owned' && after.owner !== null && after.diskHolder === after.owner
    && after.lastStarted === 0 && after.startedBefore === 0 && after.previous === null;
  return fresh && (before === null ? after.epoch === 1
    : before.phase === 'absent' && after.epoch === before.epoch + 1);
}

/**
 * The actions of the specification that lead from one entry to the next; empty means that the
 * specification does not allow the step. `before` is null for a name never used.
 */
export function modelActions(before: VmEntry | null, after: VmEntry): readonly ModelAction[] {
  if (before === null || before.phase === 'absent') return isInit(before, after) ? ['Init'] : [];
  const b = variables(before);
  const a = variables(after);
  if (a.st === 'absent') {
    return b.st === 'owned' && equal(a, { ...b, st: 'absent', own: null }) ? ['Delete'] : [];
  }
  if (equal(a, b)) {
    const kept = before.migration === after.migration && before.target === after.target;
    if (!kept) return [];
    return before.ready === null && after.ready !== null ? ['SendReady'] : ['Stutter'];
  }
  const step: Step = { before, after, b, a };
  return (Object.keys(actions) as (keyof typeof actions)[]).filter((name) => actions[name](step));
}

/** The action that each event has to be in the specification; several where it depends. */
export const actionsOfEvent: Readonly<Record<string, readonly ModelAction[]>> = {
  'create': ['Init'],
  'delete': ['Delete'],
  'desire': ['Stutter'],
  'prepare': ['Prepare'],
  'quiesced': ['Stutter'],
  'ready': ['SendReady'],
  'commit': ['Commit'],
  'abort': ['Abort'],
  'started': ['RecStart'],
  'revert': ['Revert'],
  'declined': ['Decline'],
  'settle': ['Settle'],
  'restart': ['Failover'],
  'failover': ['Failover'],
};
