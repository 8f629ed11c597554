/**
 * The control worker's part of an evacuation: what the ledger says of hosts and VMs, the cordon,
 * and commands to moves. Which VM goes where is decided by the workflow.
 */
import { CodedError, readFailure } from '../contracts/failures.ts';
import type { EvacuationActivities, SurveyedVm } from '../contracts/evacuation.ts';
import type { HostName, MigrationId } from '../contracts/identity.ts';
import type { SessionCommand } from '../contracts/migration.ts';
import type { Ledger, VmEntry } from '../contracts/ownership.ts';
import { placementHosts, placementVm } from '../contracts/placement.ts';

export interface EvacuationDependencies {
  readonly ledger: Ledger;
  /** Gives a command to the workflow of a move; throws the refusal. */
  readonly commandMove: (migration: MigrationId, command: SessionCommand) => Promise<void>;
}

const isOwnedBy = (host: HostName) =>
  (entry: VmEntry): entry is VmEntry & { readonly owner: HostName } =>
    entry.owner === host && entry.phase !== 'absent';
const surveyed = (entry: VmEntry & { readonly owner: HostName }): SurveyedVm => ({
  ...placementVm(entry), desired: entry.desired,
  migration: entry.phase === 'owned' ? null : entry.migration,
});

/** What a move's refusal looks like here: it has ended, or is past what the command is for. */
const isRefusal = (error: unknown): boolean => {
  const code = readFailure(error)?.code;
  return code === 'migration/past-return' || code === 'migration/unknown'
    || code === 'migration/cancelled' || code === 'input/invalid';
};

export function evacuationSteps(
  { ledger, commandMove }: EvacuationDependencies,
): EvacuationActivities {
  return {
    cordonHost: async ({ host }) => {
      const [verdict] = await ledger.propose([{ kind: 'cordon-host', host, cordoned: true }]);
      if (verdict === undefined) throw new CodedError('ownership/unreachable', `cordon ${host}`);
      if (!verdict.accepted) throw new CodedError(verdict.code, verdict.reason);
    },
    surveyHost: async ({ host }) => {
      const [hosts, entries] = await Promise.all([ledger.listHosts(), ledger.listVms()]);
      if (!hosts.some(({ facts }) => facts.name === host)) {
        throw new CodedError('host/unknown', host);
      }
      return {
        vms: entries.filter(isOwnedBy(host)).map(surveyed),
        hosts: placementHosts(hosts, entries),
      };
    },
    commandMove: async ({ migration, command }) => {
      try {
        await commandMove(migration, command);
        return true;
      } catch (error) {
        if (isRefusal(error)) return false;
        throw error;
      }
    },
  };
}
