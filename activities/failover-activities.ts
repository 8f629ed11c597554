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

type FailoverActivities = Pick<LifecycleControlActivities, 'planFailover' | 'proposeFailover'>;

export function failoverSteps(ledger: Ledger): FailoverActivities {
  return {
    planFailover: async ({ vm, epoch, to }) => {
      const [entry, hosts, entries] = await Promise.all([
        ledger.readVm(vm), ledger.listHosts(), ledger.listVms(),
      ]);
      const owner = entry?.owner ?? null;
      if (entry === null || owner === null) throw new CodedError('vm/unknown', vm);
      const { spec } = entry;
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
    proposeFailover: async ({ vm, epoch, to, fenceProof }) => {
      const [verdict] = await ledger.propose([{ kind: 'failover', vm, epoch, to, fenceProof }]);
      if (verdict === undefined) throw new CodedError('ownership/unreachable', `failover of ${vm}`);
      if (!verdict.accepted) throw new CodedError(verdict.code, verdict.reason);
      const { entry } = verdict;
      if (entry === null) throw new CodedError('vm/unknown', vm);
      return {
        host: entry.owner ?? to, epoch: entry.epoch, desired: entry.desired, inMigration: false,
      };
    },
  };
}
