/**
 * The ownership ledger's decision: pure, from the state, one event, who proposes it and the time.
 * It decides the whole table of docs/ownership.md; it leaves durability to ../ledger-log, order and
 * transport to runners/ledger, and what hosts do with an answer to the host runner.
 */
import type { LedgerEvent } from '../../../contracts/ownership.ts';
import type { Circumstances, Decision, VmCase } from './decision.ts';
import { refused } from './decision.ts';
import { decideCordonHost, decideJoinHost } from './host-events.ts';
import {
  decideAbort, decideCommit, decideDeclined, decidePrepare, decideRevert, decideSettle,
  decideTransferRecord,
} from './move-events.ts';
import type { LedgerView } from './state.ts';
import {
  decideCreate, decideDelete, decideDesire, decideFailover, decideRenew, decideRestart,
  decideStarted,
} from './tenure-events.ts';

/**
 * Judges one event. A refusal and a repeat change nothing; the caller applies `change` once it is
 * durable. `verdict.index` is the log position that the change will have.
 */
export function decide(
  view: LedgerView, event: LedgerEvent, circumstances: Circumstances,
): Decision {
  switch (event.kind) {
    case 'join-host': return decideJoinHost(view, event, circumstances);
    case 'cordon-host': return decideCordonHost(view, event, circumstances);
    case 'create': return decideCreate(view, event, circumstances);
    case 'delete': return decideDelete(view, event, circumstances);
    default: return decideAboutVm(view, event, circumstances);
  }
}

type VmEvent = Exclude<
  LedgerEvent, { readonly kind: 'join-host' | 'cordon-host' | 'create' | 'delete' }
>;

function decideAboutVm(
  view: LedgerView, event: VmEvent, circumstances: Circumstances,
): Decision {
  const record = view.vm(event.vm);
  if (record === undefined || record.entry.phase === 'absent') {
    return refused(undefined, 'vm/unknown', event.vm);
  }
  const context = <E extends LedgerEvent>(of: E): VmCase<E> => ({
    ...circumstances, view, record, event: of,
  });
  switch (event.kind) {
    case 'desire': return decideDesire(context(event));
    case 'prepare': return decidePrepare(context(event));
    case 'quiesced':
    case 'ready': return decideTransferRecord(context(event));
    case 'commit': return decideCommit(context(event));
    case 'abort': return decideAbort(context(event));
    case 'started': return decideStarted(context(event));
    case 'revert': return decideRevert(context(event));
    case 'declined': return decideDeclined(context(event));
    case 'settle': return decideSettle(context(event));
    case 'restart': return decideRestart(context(event));
    case 'failover': return decideFailover(context(event));
    case 'renew': return decideRenew(context(event));
  }
}
