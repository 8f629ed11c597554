/** Stops a VM on the host that owns it. */
import { setWorkflowOptions } from '@temporalio/workflow';
import type { LifecycleOutcome, StopVmInput } from '../contracts/vm-lifecycle.ts';
import { LifecycleRun } from './lifecycle-run.ts';
import { controlSteps, stopSteps } from './step-options.ts';

/**
 * Workflow `stopVm`, id `stop/<vm>/<request>`. Not undone: the wish to stop stays in the ledger,
 * and the runner follows it when it comes back.
 */
export async function stopVm({ vm, graceMs }: StopVmInput): Promise<LifecycleOutcome> {
  const run = new LifecycleRun(vm, 'stop');
  return run.outcomeOf(async () => {
    const { host, epoch } = await controlSteps.locate({ vm });
    run.enter('record', host);
    await controlSteps.desire({ vm, desired: 'stopped' });
    run.enter('stop');
    await stopSteps(host, graceMs).stopVm({ version: 1, vm, epoch, graceMs });
    return { host, runState: 'stopped', epoch, incarnation: null };
  });
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, stopVm);
