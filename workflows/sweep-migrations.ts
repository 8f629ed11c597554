/** Looks for open migrations without a running workflow and starts a `finishMigration` for each. */
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import { ParentClosePolicy, setWorkflowOptions, startChild } from '@temporalio/workflow';
import { finishMigrationId } from '../contracts/identity.ts';
import type { MigrationId } from '../contracts/identity.ts';
import { finishMigration } from './finish-migration.ts';
import { controlSteps } from './step-options.ts';

/** One sweep starts at most so many; the next one goes on. Keeps its history short. */
const finishesMax = 50;

/** Workflow `sweepMigrations`, run by a schedule every minute; answers what it took up. */
export async function sweepMigrations(): Promise<readonly MigrationId[]> {
  const open = await controlSteps.listOpenMigrations();
  const taken: MigrationId[] = [];
  for (const migration of open.filter(({ driven }) => !driven).slice(0, finishesMax)) {
    try {
      await startChild(finishMigration, {
        args: [migration],
        workflowId: finishMigrationId(migration.migration),
        parentClosePolicy: ParentClosePolicy.ABANDON,
      });
      taken.push(migration.migration);
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
    }
  }
  return taken;
}
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, sweepMigrations);
