/**
 * Ends a migration that the ledger holds open and that no workflow drives any more (terminated in
 * the UI, say): abort where the ledger still can, else forward. Idempotent; two at once do no harm.
 */
import { CancellationScope, setWorkflowOptions } from '@temporalio/workflow';
import { failureReport } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';
import type { OpenMigration, StepInput } from '../contracts/migration.ts';
import { Compensations } from './compensation.ts';
import { verifyAndSettle } from './migration-end.ts';
import { decidingSteps, hostSteps } from './step-options.ts';

/** What became of it; failures are of hosts out of reach, whose runners sweep later. */
export interface FinishedMigration {
  readonly end: 'committed' | 'aborted' | 'reverted' | 'none';
  readonly failures: readonly FailureReport[];
}

/** Both directions; throws when the target of a committed migration can't be verified. */
export async function endOpenMigration(
  open: OpenMigration,
  reason: string,
): Promise<FinishedMigration> {
  const { migration, vm, source, target } = open;
  const epoch = open.started ? open.epoch - 1 : open.epoch;
  const step: StepInput = { version: 1, migration, vm, source, target, epoch };
  const { end } = await decidingSteps.abortMigration({ ...step, reason });
  const tidy = new Compensations();
  if (end === 'committed') {
    const { exactness, since } = await verifyAndSettle(step, () => undefined);
    if (since?.code === 'migration/taken-back') return { end: 'none', failures: [since] };
    if (exactness?.kind === 'damaged') {
      return { end, failures: [failureReport('migration/damaged', exactness.detail)] };
    }
    tidy.push('releaseSource', async () => { await hostSteps(source).releaseSource(step); });
  } else {
    tidy.push('discardTarget', () => hostSteps(target).discardTarget(step));
    tidy.push('abortSource', () => hostSteps(source).abortSource(step));
  }
  return { end, failures: await tidy.run() };
}

/** Workflow `finishMigration`, id `finish/<migration id>`, started by the sweep. */
export async function finishMigration(open: OpenMigration): Promise<FinishedMigration> {
  return CancellationScope.nonCancellable(
    () => endOpenMigration(open, 'its workflow is gone'),
  );
}
setWorkflowOptions({ versioningBehavior: 'PINNED' }, finishMigration);
