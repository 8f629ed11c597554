/** What a client does with the life cycle of a VM: start the workflow of a request, or join it. */
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/client';
import type { Client } from '@temporalio/client';
import { controlTaskQueue, lifecycleWorkflowId } from '../contracts/identity.ts';
import type { VmName } from '../contracts/identity.ts';
import { timing } from '../contracts/limits.ts';
import {
  createVmType, deleteVmType, failoverVmType, resolveVmType, startVmType, stopVmType,
} from '../contracts/vm-lifecycle.ts';
import type {
  CreateVmInput, FailoverVmInput, LifecycleOutcome, ResolveVmInput, StopVmInput, VmInput,
} from '../contracts/vm-lifecycle.ts';
import { codedError } from './migration-client.ts';

const types = {
  create: createVmType, delete: deleteVmType, start: startVmType, stop: stopVmType,
  resolve: resolveVmType, failover: failoverVmType,
};

/** One request of the life cycle. */
export type LifecycleRequest =
  | { readonly step: 'create'; readonly input: CreateVmInput }
  | { readonly step: 'delete' | 'start'; readonly input: VmInput }
  | { readonly step: 'stop'; readonly input: StopVmInput }
  | { readonly step: 'resolve'; readonly input: ResolveVmInput }
  | { readonly step: 'failover'; readonly input: FailoverVmInput };

const vmOf = (request: LifecycleRequest): VmName =>
  request.step === 'create' ? (request.input.spec.name as VmName) : request.input.vm;

/** Starts it and answers its workflow id; the same request joins. */
export async function startLifecycle(client: Client, request: LifecycleRequest): Promise<string> {
  const { step, input } = request;
  const vm = vmOf(request);
  const workflowId = lifecycleWorkflowId(step, vm, input.request);
  try {
    await client.workflow.start(types[step], {
      workflowId,
      taskQueue: controlTaskQueue,
      args: [input],
      workflowTaskTimeout: timing.workflowTaskTimeoutMs,
      workflowIdConflictPolicy: 'USE_EXISTING',
      // A failover that did not come about is tried again under its one name.
      workflowIdReusePolicy: step === 'failover'
        ? 'ALLOW_DUPLICATE' : 'ALLOW_DUPLICATE_FAILED_ONLY',
      staticSummary: `${step} ${vm}`,
    });
  } catch (error) {
    if (!(error instanceof WorkflowExecutionAlreadyStartedError)) {
      throw codedError(error, workflowId);
    }
  }
  return workflowId;
}

/** Runs it to its outcome; the same request joins or answers again. */
export async function runLifecycle(
  client: Client,
  request: LifecycleRequest,
): Promise<{ readonly workflowId: string; readonly outcome: LifecycleOutcome }> {
  const workflowId = await startLifecycle(client, request);
  const join = client.workflow.getHandle<() => Promise<LifecycleOutcome>>(workflowId);
  try {
    return { workflowId, outcome: await join.result() };
  } catch (error) {
    throw codedError(error, workflowId);
  }
}
