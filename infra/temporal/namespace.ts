/** What a Temporal namespace needs before NovaCron works in it: search attributes and schedules. */
import { ScheduleAlreadyRunning, ScheduleOverlapPolicy } from '@temporalio/client';
import type { Client } from '@temporalio/client';
import { msToTs } from '@temporalio/common/lib/time.js';
import { controlTaskQueue } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import { migrationSearchAttributes } from '../../contracts/migration.ts';

/** `INDEXED_VALUE_TYPE_KEYWORD` of Temporal's API. */
const keywordType = 2;
/** gRPC status ALREADY_EXISTS. */
const alreadyExists = 6;
export const sweepScheduleId = 'novacron-sweep-migrations';
/** An orphaned move is taken up within this time; a sweep with nothing to do costs 11 events. */
const sweepEveryMs = 60_000;

/** Ended moves stay in Temporal this long; what they did is in the ledger anyway. */
const retentionMs = 7 * 86_400_000;

/** Registers the client's namespace; false where it exists already, and is left as it is. */
export async function registerNamespace(client: Client): Promise<boolean> {
  try {
    await client.workflowService.registerNamespace({
      namespace: client.options.namespace,
      workflowExecutionRetentionPeriod: msToTs(retentionMs),
    });
    return true;
  } catch (error) {
    if ((error as { code?: number }).code !== alreadyExists) throw error;
    return false;
  }
}

/** Registers the search attributes of moves, all keyword; those that exist stay. */
export async function registerSearchAttributes(client: Client): Promise<void> {
  const { namespace } = client.options;
  const { operatorService } = client.connection;
  for (const name of Object.values(migrationSearchAttributes)) {
    try {
      await operatorService.addSearchAttributes({
        namespace, searchAttributes: { [name]: keywordType },
      });
    } catch (error) {
      if ((error as { code?: number }).code !== alreadyExists) throw error;
    }
  }
}

/** The schedule that ends moves whose workflow is gone; made once, an existing one stays. */
export async function createSchedules(client: Client): Promise<void> {
  try {
    await client.schedule.create({
      scheduleId: sweepScheduleId,
      spec: { intervals: [{ every: sweepEveryMs }] },
      policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: sweepEveryMs },
      action: {
        type: 'startWorkflow',
        workflowType: 'sweepMigrations',
        workflowId: 'sweep-migrations',
        taskQueue: controlTaskQueue,
        workflowTaskTimeout: timing.workflowTaskTimeoutMs,
      },
    });
  } catch (error) {
    if (!(error instanceof ScheduleAlreadyRunning)) throw error;
  }
}

/** Both; safe to run again. */
export async function prepareNamespace(client: Client): Promise<void> {
  await registerSearchAttributes(client);
  await createSchedules(client);
}
