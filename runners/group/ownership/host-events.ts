/** Rules of the ledger's list of hosts: join (again) and cordon. */
import type { HostName } from '../../../contracts/identity.ts';
import { isHostName } from '../../../contracts/identity.ts';
import type { HostEntry, LedgerEvent } from '../../../contracts/ownership.ts';
import type { Circumstances, Decision } from './decision.ts';
import { decided, proposingHost, refused, repeated, wrongRole } from './decision.ts';
import { canonicalJson } from './signing.ts';
import type { LedgerView } from './state.ts';
import { ledgerBounds } from './state.ts';

type Of<K extends LedgerEvent['kind']> = Extract<LedgerEvent, { readonly kind: K }>;

/**
 * A host makes itself known, or an operator does it for it; a host that joins again brings its
 * present facts and the key of its present certificate.
 */
export function decideJoinHost(
  view: LedgerView, event: Of<'join-host'>, { proposer, now, checks }: Circumstances,
): Decision {
  const { facts, publicKeyPem } = event;
  const operated = proposer.role === 'operator' || proposer.role === 'control';
  if (!operated && proposingHost(proposer) !== facts.name) {
    return wrongRole(undefined, proposer, event, `host/${facts.name}, control or an operator`);
  }
  if (!isHostName(facts.name)) return refused(undefined, 'input/invalid', 'not a host name');
  if (!checks.isPublicKey(publicKeyPem)) {
    return refused(undefined, 'input/invalid', 'the public key is not an Ed25519 key in PEM');
  }
  const old = view.host(facts.name);
  const same = old !== undefined && old.publicKeyPem === publicKeyPem
    && canonicalJson(old.facts) === canonicalJson(facts);
  if (same) return repeated(view, undefined);
  if (old === undefined && view.hostCount >= ledgerBounds.hostCountMax) {
    const { hostCountMax } = ledgerBounds;
    return refused(undefined, 'ownership/refused', `${hostCountMax} hosts have joined`);
  }
  const host: HostEntry = {
    version: 1, facts, publicKeyPem, cordoned: old?.cordoned ?? false,
    joinedAtMs: old?.joinedAtMs ?? now.wallMs, changedAtMs: now.wallMs,
  };
  return decided(view, undefined, { host });
}

/** A cordoned host takes no new VM; those it has stay, and may leave. */
export function decideCordonHost(
  view: LedgerView, event: Of<'cordon-host'>, { proposer, now }: Circumstances,
): Decision {
  if (proposer.role !== 'operator' && proposer.role !== 'control') {
    return wrongRole(undefined, proposer, event, 'control or an operator');
  }
  const old = view.host(event.host as HostName);
  if (old === undefined) return refused(undefined, 'host/unknown', event.host);
  if (old.cordoned === event.cordoned) return repeated(view, undefined);
  return decided(view, undefined, {
    host: { ...old, cordoned: event.cordoned, changedAtMs: now.wallMs },
  });
}
