/**
 * The activities of the control worker: ledger events and reads, nothing that touches a host. The
 * ledger decides; this file only proposes, and reads a refusal as "already so" where it is.
 */
import { CodedError, failureReport } from '../contracts/failures.ts';
import type { MigrationId, VmName } from '../contracts/identity.ts';
import type {
  ControlActivities, OpenMigration, SinceStart, StepInput, VmWhereabouts,
} from '../contracts/migration.ts';
import type { Ledger, MigrationEnd, VmEntry } from '../contracts/ownership.ts';
import type { LifecycleControlActivities } from '../contracts/vm-lifecycle.ts';
import type { EvacuationActivities } from '../contracts/evacuation.ts';
import { codedActivities } from './coded-activity.ts';
import { evacuationSteps } from './evacuation-activities.ts';
import { failoverSteps } from './failover-activities.ts';
import type { FailoverActivities } from './failover-activities.ts';
import type { EvacuationDependencies } from './evacuation-activities.ts';
import { isOpen, LedgerSteps, refusalError } from './ledger-steps.ts';

/** What the control activities need from outside. */
export interface ControlDependencies extends EvacuationDependencies {
  /** True while a workflow of that id runs: it will end its migration itself. */
  readonly isWorkflowRunning: (workflowId: string) => Promise<boolean>;
}

const hasStarted = (entry: VmEntry): boolean =>
  entry.phase === 'unsettled' && entry.lastStarted === entry.epoch;

/** The entry's open migration; the source is who owned it before a Commit. */
export function openMigrationOf(entry: VmEntry, driven: boolean): OpenMigration | null {
  if (!isOpen(entry) || entry.migration === null || entry.owner === null) return null;
  const committed = entry.phase === 'unsettled';
  const source = committed ? entry.previous : entry.owner;
  const target = committed ? entry.owner : entry.target;
  if (source === null || target === null) return null;
  return {
    migration: entry.migration,
    vm: entry.vm,
    source,
    target,
    epoch: entry.epoch,
    started: hasStarted(entry),
    driven,
  };
}

/** The life cycle's part: Create, Desire, Delete. */
function lifecycleSteps(
  ledger: Ledger,
): Omit<LifecycleControlActivities, keyof FailoverActivities> {
  const steps = new LedgerSteps(ledger);
  return {
    createEntry: async ({ spec, host }) => {
      const vm = spec.name as VmName;
      return steps.location(await steps.accepted(vm, { kind: 'create', vm, host, spec }));
    },
    locate: async ({ vm }) => steps.location(await steps.entry(vm)),
    desire: async ({ vm, desired }) => {
      const entry = await steps.entry(vm);
      if (isOpen(entry)) throw new CodedError('migration/open', `${entry.migration}`);
      return steps.location(
        await steps.accepted(vm, { kind: 'desire', vm, epoch: entry.epoch, desired }),
      );
    },
    deleteEntry: async ({ vm, epoch }) => {
      const verdict = await steps.proposeOne({ kind: 'delete', vm, epoch });
      if (!verdict.accepted && verdict.code !== 'vm/unknown') throw refusalError(verdict);
    },
  };
}

/** Abort if it can still be aborted, Revert if committed and not started, else say how it is. */
async function endMigration(
  steps: LedgerSteps,
  ledger: Ledger,
  step: StepInput & { readonly reason: string },
): Promise<'committed' | 'aborted' | 'reverted' | 'none'> {
  const { vm, migration, reason } = step;
  const ended = await ledger.migrationEnd(migration);
  if (ended !== null && ended !== 'committed') return ended;
  const entry = await ledger.readVm(vm);
  if (entry?.migration !== migration || !isOpen(entry)) return ended ?? 'none';
  if (hasStarted(entry)) return 'committed';
  const kind = entry.phase === 'preparing' ? 'abort' : 'revert';
  const verdict = await steps.proposeOne({ kind, vm, migration, epoch: entry.epoch, reason });
  if (verdict.accepted) return kind === 'abort' ? 'aborted' : 'reverted';
  if (verdict.code === 'ownership/role') throw refusalError(verdict);
  // Somebody else's event came first: the activity is called again and reads the new state.
  throw new CodedError('ownership/unreachable', `${kind} came too late: ${verdict.reason}`);
}

/** What the ledger knows about one migration id of this VM. */
async function ownState(
  ledger: Ledger,
  entry: VmEntry,
  migration: MigrationId,
): Promise<VmWhereabouts['own']> {
  if (entry.migration === migration && entry.phase === 'preparing') return 'preparing';
  if (entry.migration === migration && entry.phase === 'unsettled') return 'unsettled';
  return (await ledger.migrationEnd(migration)) ?? 'none';
}

/** What the ledger knows of an ended move's VM since its start; null: nothing but the move. */
function sinceStart(
  entry: VmEntry, { migration, epoch }: StepInput, end: MigrationEnd | null,
): SinceStart | null {
  if (end === 'reverted') return failureReport('migration/taken-back', entry.cause);
  const isRestarted = entry.migration === migration && !isOpen(entry) && entry.epoch > epoch + 1;
  return end === 'committed' && isRestarted ? failureReport('vm/memory-lost', entry.cause) : null;
}

/** Records equal and the start recorded; an entry that is settled already was checked before. */
async function verifyMigration(
  steps: LedgerSteps,
  ledger: Ledger,
  step: StepInput,
): ReturnType<ControlActivities['verifyMigration']> {
  const { vm, migration, target } = step;
  const entry = await steps.entry(vm);
  const { quiesced, ready } = entry;
  if (!isOpen(entry) || entry.migration !== migration) {
    const end = await ledger.migrationEnd(migration);
    const since = sinceStart(entry, step, end);
    if (since?.code !== 'migration/taken-back' && (entry.owner !== target || end !== 'committed')) {
      throw new CodedError('ownership/refused', `${migration} did not end in a commit`);
    }
    return {
      digest: ready?.digest ?? '', epochAfter: entry.epoch, settled: true,
      ...(since === null ? {} : { since }),
    };
  }
  if (!hasStarted(entry)) {
    throw new CodedError('ownership/unreachable', 'the target has not recorded its start yet');
  }
  if (quiesced === null || ready === null || quiesced.digest !== ready.digest) {
    throw new CodedError('migration/digest', `${migration}: the two records differ`);
  }
  return { digest: quiesced.digest, epochAfter: entry.epoch, settled: false };
}

/** The move's part. */
function migrationSteps({ ledger, isWorkflowRunning }: ControlDependencies): ControlActivities {
  const steps = new LedgerSteps(ledger);
  const open = async (entry: VmEntry): Promise<OpenMigration | null> =>
    isOpen(entry) && entry.migration !== null
      ? openMigrationOf(entry, await isWorkflowRunning(entry.migration))
      : null;
  const prepared = async (step: StepInput): Promise<VmEntry | null> => {
    const entry = await ledger.readVm(step.vm);
    return entry?.migration === step.migration && isOpen(entry) ? entry : null;
  };
  return {
    locateVm: async ({ vm, target, migration }) => {
      const hosts = await ledger.listHosts();
      if (!hosts.some(({ facts }) => facts.name === target)) {
        throw new CodedError('host/unknown', target);
      }
      const entry = await steps.entry(vm);
      const own = await ownState(ledger, entry, migration);
      const committed = own === 'unsettled' || own === 'committed';
      return {
        source: (committed ? entry.previous : null) ?? steps.owner(entry),
        epoch: committed ? entry.epoch - 1 : entry.epoch,
        desired: entry.desired,
        own,
        other: entry.migration === migration ? null : await open(entry),
      };
    },
    readOpenMigration: async ({ vm }) => {
      const entry = await ledger.readVm(vm);
      return entry === null ? null : open(entry);
    },
    listOpenMigrations: async () => {
      const all = await Promise.all((await ledger.listVms()).map(open));
      return all.filter((migration) => migration !== null);
    },
    reserve: async ({ vm, migration, target, epoch, policy }) => {
      await steps.accepted(vm, {
        kind: 'prepare', vm, migration, epoch, target,
        postCopyAllowed: policy.postCopy !== 'never',
        commitDelegated: true,
      });
    },
    abortMigration: async (step) => ({ end: await endMigration(steps, ledger, step) }),
    verifyMigration: (step) => verifyMigration(steps, ledger, step),
    settleMigration: async (step) => {
      const entry = await prepared(step);
      if (entry === null) {
        // Ended already: by the target after its limit, by an earlier attempt, by a new start.
        const [now, end] = await Promise.all([
          steps.entry(step.vm), ledger.migrationEnd(step.migration),
        ]);
        const since = sinceStart(now, step, end);
        return since === null ? {} : { since };
      }
      // verifyTarget, which comes before this step, answers only once no page is missing.
      await steps.accepted(step.vm, {
        kind: 'settle', vm: step.vm, migration: step.migration, epoch: entry.epoch,
        missingPageCount: 0,
      });
      return {};
    },
  };
}

/** What the control worker registers. */
export function createControlActivities(
  dependencies: ControlDependencies,
): ControlActivities & LifecycleControlActivities & EvacuationActivities {
  return codedActivities({
    ...migrationSteps(dependencies),
    ...lifecycleSteps(dependencies.ledger),
    ...failoverSteps(dependencies.ledger),
    ...evacuationSteps(dependencies),
  });
}

