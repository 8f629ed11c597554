/**
 * Empties a host: moves its VMs to other hosts, so many at a time. Each move is a `migrateVm` of
 * its own, which ends well by itself whatever becomes of the evacuation. What is still to be done is
 * read from the ledger before each wave, so an evacuation that was ended, reset or begun again goes
 * on where it stopped.
 */
import {
  defineSearchAttributeKey, SearchAttributeType, TypedSearchAttributes,
  WorkflowExecutionAlreadyStartedError,
} from '@temporalio/common';
import {
  allHandlersFinished, CancellationScope, condition, continueAsNew, ContinueAsNew,
  ParentClosePolicy, setWorkflowOptions, startChild, workflowInfo,
} from '@temporalio/workflow';
import type { EvacuateHostInput, EvacuationOutcome } from '../contracts/evacuation.ts';
import { controlTaskQueue, parseMigrationId } from '../contracts/identity.ts';
import { timing } from '../contracts/limits.ts';
import { migrationSearchAttributes } from '../contracts/migration.ts';
import type { PlannedMove } from '../contracts/placement.ts';
import { EvacuationRun } from './evacuation-run.ts';
import { failureOf } from './failure-of.ts';
import { migrateVm } from './migrate-vm.ts';
import { decidingSteps } from './step-options.ts';

/** Workflow `evacuateHost`, id `evacuate/<host>`; see contracts/evacuation.ts. */
export async function evacuateHost(input: EvacuateHostInput): Promise<EvacuationOutcome> {
  const run = new EvacuationRun(input);
  run.listen();
  return CancellationScope.nonCancellable(async () => {
    const outcome = await empty(run).then(
      () => run.outcome(),
      (error: unknown) => {
        if (error instanceof ContinueAsNew) throw error;
        return run.outcome(failureOf(error));
      },
    );
    run.end(outcome);
    await condition(allHandlersFinished);
    return outcome;
  });
}
// It may wait for days, and starts moves by the newest worker; its histories are replayed.
setWorkflowOptions({ versioningBehavior: 'AUTO_UPGRADE' }, evacuateHost);

/** Cordon, then waves until no VM is left that can be moved; ends with no move under way. */
async function empty(run: EvacuationRun): Promise<void> {
  const { host, policy, carried } = run.input;
  if (policy.cordon && carried === undefined) {
    run.enter('cordon', 'the ledger');
    await decidingSteps.cordonHost({ host });
  }
  const moves = new Set<Promise<void>>();
  for (;;) {
    await run.untilMayBegin();
    if (run.isCancelled) break;
    const planned = run.next();
    if (planned !== null) {
      run.enter('moving', null);
      const move = moveOne(run, planned).finally(() => moves.delete(move));
      moves.add(move);
      continue;
    }
    if (isHistoryLong(policy.historyEventsMax)) await handOver(run, moves);
    if (moves.size === 0) run.enter('survey', 'the ledger');
    const survey = await run.untilCancelled(() => decidingSteps.surveyHost({ host }));
    if (survey === null) break;
    run.take(survey);
    if (run.isOver) break;
    if (run.isIdle) {
      if (moves.size === 0) run.enter('waiting', 'VMs that others move, or the next try');
      await run.untilNews();
    }
  }
  await Promise.all(moves);
}

const isHistoryLong = (historyEventsMax: number): boolean => {
  const { historyLength, continueAsNewSuggested } = workflowInfo();
  return continueAsNewSuggested || historyLength > historyEventsMax;
};

/** A new run can not wait for the children of this one: they end first. */
async function handOver(run: EvacuationRun, moves: ReadonlySet<Promise<void>>): Promise<void> {
  await Promise.all(moves);
  await condition(allHandlersFinished);
  await continueAsNew<typeof evacuateHost>({
    ...run.input, policy: run.status.policy, carried: run.carried });
}

/** One try to move one VM; how it ended is in its row. */
async function moveOne(run: EvacuationRun, planned: PlannedMove): Promise<void> {
  const { vm, target } = planned;
  const part = run.bandwidthPart;
  const { migration } = run.begun(planned);
  const request = migration === null ? null : parseMigrationId(migration)?.request;
  if (migration === null || request === undefined || request === null) throw new TypeError(vm);
  const keyword = (name: string, value: string) =>
    ({ key: defineSearchAttributeKey(name, SearchAttributeType.KEYWORD), value });
  try {
    const outcome = await run.moves.run(async () => {
      const child = await startChild(migrateVm, {
        workflowId: migration,
        taskQueue: controlTaskQueue,
        args: [{
          version: 1, vm, target, request,
          policy: { ...run.status.policy.move, bandwidthBytesPerSecond: part },
        }],
        workflowTaskTimeout: timing.workflowTaskTimeoutMs,
        workflowIdReusePolicy: 'ALLOW_DUPLICATE_FAILED_ONLY',
        // A terminated evacuation leaves its moves to end by themselves.
        parentClosePolicy: ParentClosePolicy.ABANDON,
        staticSummary: `${vm} to ${target}, off ${run.input.host}`,
        typedSearchAttributes: new TypedSearchAttributes([
          keyword(migrationSearchAttributes.vm, vm),
          keyword(migrationSearchAttributes.target, target),
          keyword(migrationSearchAttributes.outcome, 'running'),
        ]),
      });
      return child.result();
    });
    run.ended(vm, outcome);
  } catch (error) {
    // That try was begun by an earlier run of this evacuation: it is waited for by looking.
    run.ended(vm, error instanceof WorkflowExecutionAlreadyStartedError
      ? { ...failureOf(error), code: 'migration/open' } : failureOf(error));
  }
}
