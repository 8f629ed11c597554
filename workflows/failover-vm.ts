/** Starts a VM on another host from its shared volumes, once its owner can't run it any more. */
import { setWorkflowOptions } from '@temporalio/workflow';
import type { FailoverVmInput, LifecycleOutcome } from '../contracts/vm-lifecycle.ts';
import { LifecycleRun } from './lifecycle-run.ts';
import { controlSteps, failoverSteps, hostSteps } from './step-options.ts';

/**
 * Workflow `failoverVm`, id `failover/<vm>/e<epoch>`. Nothing is undone: what the ledger has
 * decided stands, and the new owner starts the VM also without this workflow. Begun again it goes
 * on there.
 */
export async function failoverVm(input: FailoverVmInput): Promise<LifecycleOutcome> {
  const { vm, epoch, fenceProof } = input;
  const run = new LifecycleRun(vm, 'failover');
  return run.outcomeOf(async () => {
    const { to, spec, decidedEpoch } = await controlSteps.planFailover(
      { vm, epoch, to: input.to });
    run.enter('record', to);
    const decided = decidedEpoch ?? (
      await failoverSteps.proposeFailover({ vm, epoch, to, fenceProof })).epoch;
    const step = { version: 1, vm, epoch: decided } as const;
    run.enter('host');
    await hostSteps(to).createVmFiles({ ...step, spec });
    run.enter('start');
    return { host: to, ...(await hostSteps(to).startVm(step)) };
  });
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, failoverVm);
