/**
 * Ends the damage of a VM as an operator chose: it goes on as it is, or boots cold from the
 * target's disk. Either way the move is settled then and the source's image goes.
 */
import { ApplicationFailure, setWorkflowOptions } from '@temporalio/workflow';
import { failureFields } from '../contracts/failures.ts';
import type { StepInput } from '../contracts/migration.ts';
import type { LifecycleOutcome, ResolveVmInput } from '../contracts/vm-lifecycle.ts';
import { endOpenMigration } from './finish-migration.ts';
import { LifecycleRun } from './lifecycle-run.ts';
import { controlSteps, hostSteps } from './step-options.ts';

/** Workflow `resolveVm`, id `resolve/<vm>/<request>`. */
export async function resolveVm({ vm, choice }: ResolveVmInput): Promise<LifecycleOutcome> {
  const run = new LifecycleRun(vm, 'resolve');
  return run.outcomeOf(async () => {
    const open = await controlSteps.readOpenMigration({ vm });
    if (open === null || !open.started) {
      const detail = `no move of ${vm} waits for a decision`;
      throw ApplicationFailure.create(failureFields('migration/unknown', detail));
    }
    const { migration, source, target } = open;
    const step: StepInput = { version: 1, migration, vm, source, target, epoch: open.epoch - 1 };
    run.enter('start', target);
    const reached = await hostSteps(target).resolveDamage({ ...step, choice });
    run.enter('record');
    await endOpenMigration(open, `resolved: ${choice}`);
    return { host: target, ...reached };
  });
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, resolveVm);
