/**
 * What a move does when a runner was started anew, or was out of reach, and its half of the copy is
 * gone: it copies afresh within the same migration of the ledger, which sends only what the target
 * does not hold. Decides how often, and when that is to be done in a new run of the workflow.
 */
import {
  allHandlersFinished, condition, continueAsNew, patched, workflowInfo,
} from '@temporalio/workflow';
import { failureReport } from '../contracts/failures.ts';
import { limits } from '../contracts/limits.ts';
import { failureOf } from './failure-of.ts';
import type { MigrationRun } from './migration-run.ts';
import { patches } from './patches.ts';
import { attemptFits, lastLookEvents } from './policy/history-budget.ts';
import type { Way } from './policy/outcome.ts';

/** Copies within one run; further ones are for the next. */
const attemptsOfRunMax = 3;

/** Another run is to go on with the copies. */
export type Again = { readonly kind: 'again'; readonly attempts: number };

const isSessionLost = (way: Way): boolean =>
  way.kind === 'back' && way.failure.code === 'runner/session-lost';

/** A migration that has ended meanwhile ended for the first reason. */
export async function afterLostSessions(
  attempt: (isFirst: boolean) => Promise<Way>, run: MigrationRun,
): Promise<Way | Again> {
  const once = (isFirst: boolean): Promise<Way> => attempt(isFirst).catch(
    (error: unknown): Way => ({ kind: 'back', failure: failureOf(error) }),
  );
  const before = run.input.carried?.attempts ?? 0;
  let way = await once(true);
  for (let count = 1; isSessionLost(way); count += 1) {
    if (run.cancelledBy !== null || run.remainingMs === 0) return way;
    const { historyLength } = workflowInfo();
    // Runs that began before the last look was part of a move have copied in its place.
    const isFull = count >= attemptsOfRunMax
      || (patched(patches.attemptsFitHistory) && !attemptFits(historyLength))
      || (!attemptFits(historyLength + lastLookEvents) && patched(patches.carriesOn));
    if (isFull) {
      const mayGoOn = before + count < limits.migrationAttemptCountMax
        && patched(patches.carriesOn);
      return mayGoOn ? { kind: 'again', attempts: before + count } : way;
    }
    run.enter('prepare-target', `host ${run.input.target}`);
    const next = await once(false);
    const isOver = next.kind === 'back' && next.failure.code === 'migration/cancelled';
    if (isOver && run.cancelledBy === null) return way;
    way = next;
  }
  return way;
}

/** Begins the next run; answers only when a cancel came first. */
export async function carryOn(run: MigrationRun, { attempts }: Again): Promise<Way> {
  await condition(allHandlersFinished);
  if (run.cancelledBy !== null) {
    return { kind: 'back', failure: failureReport('migration/cancelled', run.cancelledBy) };
  }
  const { input, status, remainingMs } = run;
  return continueAsNew({
    ...input, policy: { ...status.policy, deadlineMs: remainingMs },
    carried: { attempts, percent: status.percent },
  });
}
