/** Deletes a VM: stopped first, then its entry in the ledger, then its files. */
import { setWorkflowOptions } from '@temporalio/workflow';
import type { LifecycleOutcome, VmInput } from '../contracts/vm-lifecycle.ts';
import { LifecycleRun } from './lifecycle-run.ts';
import { controlSteps, hostSteps } from './step-options.ts';

/**
 * Workflow `deleteVm`, id `delete/<vm>/<request>`. Not undone: each step only goes further, and the
 * runner removes the files of a VM that the ledger has deleted.
 */
export async function deleteVm({ vm }: VmInput): Promise<LifecycleOutcome> {
  const run = new LifecycleRun(vm, 'delete');
  return run.outcomeOf(async () => {
    const { host, epoch } = await controlSteps.locate({ vm });
    const step = { version: 1, vm, epoch } as const;
    run.enter('stop', host);
    await controlSteps.desire({ vm, desired: 'stopped' });
    await hostSteps(host).stopVm({ ...step, graceMs: 0 });
    run.enter('delete');
    await controlSteps.deleteEntry({ vm, epoch });
    await hostSteps(host).destroyVmFiles(step);
    return { host, runState: 'absent', epoch: 0, incarnation: null };
  });
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, deleteVm);
