/** Creates a VM on a host: its entry in the ledger, its files, and its first start if asked for. */
import { setWorkflowOptions } from '@temporalio/workflow';
import type { VmName } from '../contracts/identity.ts';
import type { CreateVmInput, LifecycleOutcome } from '../contracts/vm-lifecycle.ts';
import { LifecycleRun } from './lifecycle-run.ts';
import { controlSteps, hostSteps } from './step-options.ts';

/** Workflow `createVm`, id `create/<vm>/<request>`. A failed creation leaves nothing behind. */
export async function createVm(input: CreateVmInput): Promise<LifecycleOutcome> {
  const { spec, host } = input;
  // The name was checked with the spec, where it came in.
  const vm = spec.name as VmName;
  const run = new LifecycleRun(vm, 'create');
  return run.outcomeOf(async () => {
    run.enter('record', host);
    const { epoch } = await controlSteps.createEntry({ spec, host });
    const step = { version: 1, vm, epoch } as const;
    // The files may go only once the ledger says that the VM is gone: undone last first.
    run.undo.push('destroyVmFiles', () => hostSteps(host).destroyVmFiles(step));
    run.undo.push('deleteEntry', () => controlSteps.deleteEntry({ vm, epoch }));
    run.enter('host');
    await hostSteps(host).createVmFiles({ ...step, spec });
    if (!input.start) return { host, runState: 'stopped', epoch, incarnation: null };
    run.enter('start');
    run.undo.push('stopVm', () => hostSteps(host).stopVm({ ...step, graceMs: 0 }));
    run.undo.push('desire stopped', async () => {
      await controlSteps.desire({ vm, desired: 'stopped' });
    });
    await controlSteps.desire({ vm, desired: 'running' });
    return { host, ...(await hostSteps(host).startVm(step)) };
  });
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, createVm);
