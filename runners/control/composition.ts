/**
 * What the control worker consists of, for both of its shapes: a long-lived process (main.ts) and a
 * function that is invoked when there is work (lambda.ts). Nothing here touches a host.
 */
import { WorkflowNotFoundError } from '@temporalio/client';
import type { Client } from '@temporalio/client';
import type { WorkerOptions } from '@temporalio/worker';
import { createControlActivities } from '../../activities/control-activities.ts';
import { controlTaskQueue } from '../../contracts/identity.ts';
import type { Ledger } from '../../contracts/ownership.ts';
import { commandMigration } from '../../payloads/migration-client.ts';
import { workerDataConverter } from '../../payloads/temporal-connection.ts';
import { workflowBundle } from './workflow-bundle.ts';

/** Name of the worker deployment whose versions are the build ids of control workers. */
export const controlDeployment = 'novacron-control';

/** True while a workflow of that id runs; how activities learn who drives a migration. */
const workflowRuns = (client: Client) => async (workflowId: string): Promise<boolean> => {
  try {
    const { status } = await client.workflow.getHandle(workflowId).describe();
    return status.name === 'RUNNING';
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return false;
    throw error;
  }
};

export interface ControlParts {
  readonly ledger: Ledger;
  /** Asks who drives a migration, and passes an evacuation's commands on to its moves. */
  readonly client: Client;
  readonly payloadKeysPath: string | null;
}

/** Queue, workflows, activities and converter; connection and version are the shape's. */
export async function controlWorkerOptions(
  { ledger, client, payloadKeysPath }: ControlParts,
): Promise<Pick<WorkerOptions,
  'taskQueue' | 'workflowBundle' | 'activities' | 'dataConverter' | 'maxCachedWorkflows'>> {
  return {
    taskQueue: controlTaskQueue,
    workflowBundle: await workflowBundle(),
    activities: createControlActivities({
      ledger, isWorkflowRunning: workflowRuns(client),
      commandMove: async (migration, command) => {
        await commandMigration(client, migration, command);
      },
    }),
    dataConverter: workerDataConverter(payloadKeysPath),
    // A cached move takes about 1 MB; more moves than that are replayed, which takes milliseconds.
    maxCachedWorkflows: 200,
  };
}
