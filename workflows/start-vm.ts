/** Starts a VM on the host that owns it. */
import { setWorkflowOptions } from '@temporalio/workflow';
import type { LifecycleOutcome, VmInput } from '../contracts/vm-lifecycle.ts';
import { LifecycleRun } from './lifecycle-run.ts';
import { controlSteps, hostSteps } from './step-options.ts';

/** Workflow `startVm`, id `start/<vm>/<request>`. A VM that runs already is the same outcome. */
export async function startVm({ vm }: VmInput): Promise<LifecycleOutcome> {
  const run = new LifecycleRun(vm, 'start');
  return run.outcomeOf(async () => {
    const { host, epoch, desired } = await controlSteps.locate({ vm });
    run.enter('record', host);
    if (desired === 'stopped') {
      run.undo.push('desire stopped', async () => {
        await controlSteps.desire({ vm, desired: 'stopped' });
      });
      await controlSteps.desire({ vm, desired: 'running' });
    }
    run.enter('start');
    return { host, ...(await hostSteps(host).startVm({ version: 1, vm, epoch })) };
  });
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, startVm);
