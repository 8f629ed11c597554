/**
 * The control worker's part of the failover of one VM: which host takes it, and the proposal. That
 * the old one can't run it any more is the ledger's to judge.
 */
import { CodedError } from '../contracts/failures.ts';
import { timing } from '../contracts/limits.ts';
import type { Ledger } from '../contracts/ownership.ts';
import { placementHosts, placementVm, placeVms } from '../contracts/placement.ts';
import { outlivesItsHost } from '../contracts/runner.ts';
import type { LifecycleControlActivities } from '../contracts/vm-lifecycle.ts';
import { LedgerSteps } from './ledger-steps.ts';

export type FailoverActivities = Pick<
  LifecycleControlActivities, 'planFailover' | 'proposeFailover'
>;

export function failoverSteps(ledger: Ledger): FailoverActivities {
  const steps = new LedgerSteps(ledger);
  return {
    planFailover: async ({ vm, epoch, to }) => {
      const [entry, hosts, entries] = await Promise.all([
        steps.entry(vm), ledger.listHosts(), ledger.listVms(),
      ]);
      const { spec } = entry;
      const owner = steps.owner(entry);
      // The epoch that was to end has ended: what is left is that its owner of now runs it.
      if (entry.epoch > epoch) return { to: owner, spec, decidedEpoch: entry.epoch };
      if (entry.desired !== 'running') {
        throw new CodedError('vm/not-running', `${vm} is to be stopped`);
      }
      if (!outlivesItsHost(spec)) {
        throw new CodedError('preflight/local-disk', `${vm} waits for ${entry.diskHolder}`);
      }
      const heard = hosts.filter(({ silentForMs }) => silentForMs <= timing.failoverSilentMsMin);
      const { moves: [move], unplaced } = placeVms({
        vms: [placementVm({ ...entry, owner })], hosts: placementHosts(heard, entries),
        targets: to === null ? null : [to],
      });
      if (move === undefined) {
        const refusals = unplaced.flatMap((one) => one.refusals)
          .map(({ host, detail }) => `${host}: ${detail}`);
        throw new CodedError(
          'evacuation/no-target', refusals.join('; ') || 'no host is heard from');
      }
      return { to: move.target, spec, decidedEpoch: null };
    },
    proposeFailover: async ({ vm, epoch, to, fenceProof }) => steps.location(
      await steps.accepted(vm, { kind: 'failover', vm, epoch, to, fenceProof })),
  };
}
