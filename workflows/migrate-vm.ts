/**
 * Moves a running VM to another host. Decides the order of the steps and what is undone; the ledger
 * decides who owns the VM, the session in the source's runner when to switch over.
 *
 * The point of no return is the ledger's Commit, inside `copyMemoryAndSwitchOver`. When that step
 * ends in anything but `handed-over`, the ledger is asked to abort: either it does, and everything
 * is undone, or the Commit was first, and the move goes forward.
 */
import {
  allHandlersFinished, ApplicationFailure, CancellationScope, condition, setWorkflowOptions, sleep,
} from '@temporalio/workflow';
import { failureFields } from '../contracts/failures.ts';
import { migrationId } from '../contracts/identity.ts';
import type {
  MigrateVmInput, MigrationOutcome, MigrationPolicy, StepInput, VmWhereabouts,
} from '../contracts/migration.ts';
import { Compensations } from './compensation.ts';
import { failureOf } from './failure-of.ts';
import { endOpenMigration } from './finish-migration.ts';
import { afterLostSessions, carryOn } from './lost-sessions.ts';
import type { Again } from './lost-sessions.ts';
import { goBack, goForward, isCommitted } from './migration-end.ts';
import { MigrationRun } from './migration-run.ts';
import { carryOnWaitMs } from './policy/history-budget.ts';
import { unknownFigures, wayAfter, wayOfEarlierRun } from './policy/outcome.ts';
import type { Way } from './policy/outcome.ts';
import { controlSteps, copySteps, hostSteps } from './step-options.ts';

/** Workflow `migrateVm`, id `migrate/<vm>/<request>`; see contracts/migration.ts. */
export async function migrateVm(input: MigrateVmInput): Promise<MigrationOutcome> {
  const run = new MigrationRun(input);
  const undo = new Compensations();
  run.listen();
  return CancellationScope.nonCancellable(async () => {
    const reached = await toHandOver(run, undo).catch(
      (error: unknown): Way => ({ kind: 'back', failure: failureOf(error) }),
    );
    let way = reached.kind === 'again' ? await carryOn(run, reached) : reached;
    if (way.kind === 'back' && (await isCommitted(run, undo, way.failure))) {
      way = { kind: 'forward', figures: unknownFigures };
    }
    const outcome = way.kind === 'forward'
      ? await goForward(run, undo, way.figures)
      : await goBack(run, undo, way.failure);
    run.end(outcome);
    await condition(allHandlersFinished);
    return outcome;
  });
}
setWorkflowOptions({ versioningBehavior: 'PINNED' }, migrateVm);

/** The steps that can be undone, up to the hand-over. */
async function toHandOver(run: MigrationRun, undo: Compensations): Promise<Way | Again> {
  run.enter('preflight', 'the ledger');
  const { step, own } = await run.interruptible(() => locate(run));
  const earlier = wayOfEarlierRun(own);
  if (earlier !== null) return earlier;
  const source = hostSteps(step.source);
  const target = hostSteps(step.target);
  const { carried } = run.input;
  if (carried !== undefined) {
    run.mayBeReserved = true;
    undo.push('discardTarget', () => target.discardTarget(step));
    undo.push('abortSource', () => source.abortSource(step));
    const waitMs = carryOnWaitMs(carried.attempts);
    if (waitMs > 0) await run.interruptible(() => sleep(waitMs));
  }
  const policy = (): MigrationPolicy => ({ ...run.status.policy, deadlineMs: run.remainingMs });

  run.waitFor(`host ${step.source}`);
  const running = await run.interruptible(() => source.inspectVm(step));
  run.sized(running);
  if (carried === undefined) {
    run.waitFor(`host ${step.target}`);
    await run.interruptible(() => target.checkTarget({ ...step, running }));

    run.enter('reserve', 'the ledger');
    run.mayBeReserved = true;
    await run.interruptible(() => controlSteps.reserve({ ...step, policy: policy() }));
    undo.push('discardTarget', () => target.discardTarget(step));
  }
  run.enter('prepare-target', `host ${step.target}`);
  const attempt = async (isFirst: boolean): Promise<Way> => {
    const prepared = { ...step, running, policy: policy() };
    const endpoint = await run.interruptible(() => target.prepareTarget(prepared));
    if (isFirst && carried === undefined) undo.push('abortSource', () => source.abortSource(step));
    const copy = copySteps(step.source, run.remainingMs);
    if (running.disks.some(({ shared }) => shared === undefined)) {
      run.enter('copy-disk', `the disks of ${step.vm}`);
      await run.copying(() => copy.copyDisk({ ...step, endpoint, policy: policy() }));
    }
    run.enter('copy-memory', `the memory of ${step.vm}`);
    return wayAfter(await run.copying(
      () => copy.copyMemoryAndSwitchOver({ ...step, endpoint, policy: policy() }),
    ));
  };
  return afterLostSessions(attempt, run);
}

/** Finds the source; a migration of the same VM that nobody drives any more is ended first. */
async function locate(
  run: MigrationRun,
): Promise<{ readonly step: StepInput; readonly own: VmWhereabouts['own'] }> {
  const { vm, target, request } = run.input;
  const migration = migrationId(vm, request);
  const find = (): Promise<VmWhereabouts> => controlSteps.locateVm({ vm, target, migration });
  let found = await find();
  if (found.other?.driven === false) {
    run.waitFor(`the end of ${found.other.migration}`);
    await endOpenMigration(found.other, `superseded by ${migration}`);
    found = await find();
  }
  const { source, epoch, own, other } = found;
  run.located({ version: 1, migration, vm, source, target, epoch });
  if (other !== null) throw refused('migration/open', other.migration);
  if (own === 'none' && source === target) throw refused('migration/same-host', target);
  return { step: { version: 1, migration, vm, source, target, epoch }, own };
}

const refused = (code: 'migration/open' | 'migration/same-host', detail: string) =>
  ApplicationFailure.create(failureFields(code, detail));
