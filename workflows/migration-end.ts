/**
 * The two ends of a move: forward after the ledger's Commit, back otherwise. Both are idempotent
 * and run in a scope that nothing cancels.
 */
import { ApplicationFailure, patched } from '@temporalio/workflow';
import type { ExactnessReport } from '../contracts/exactness.ts';
import { failureFields, failureReport } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';
import { migrationId } from '../contracts/identity.ts';
import type {
  MigrationOutcome, SinceStart, StepInput, TransferFigures,
} from '../contracts/migration.ts';
import type { Compensations } from './compensation.ts';
import { failureOf } from './failure-of.ts';
import type { MigrationRun } from './migration-run.ts';
import { patches } from './patches.ts';
import { runsOnAfter, withLateFigures } from './policy/outcome.ts';
import { decidingSteps, forwardSteps, hostSteps } from './step-options.ts';

/**
 * Asks the ledger to abort what did not hand over; true when the Commit was first. Without an
 * answer nothing is committed as far as the hosts know: each of them asks the ledger itself.
 */
export async function isCommitted(
  run: MigrationRun,
  undo: Compensations,
  failure: FailureReport,
): Promise<boolean> {
  const { step } = run;
  if (step === null || !run.mayBeReserved) return false;
  run.enter('compensating', 'the ledger');
  try {
    const reason = `${failure.code}: ${failure.detail}`.slice(0, 200);
    const { end } = await decidingSteps.abortMigration({ ...step, reason });
    return end === 'committed';
  } catch (error) {
    undo.note('abortMigration', error);
    return false;
  }
}

/** What the ledger and the target say of a move that has started. */
interface Verified {
  readonly digest: string;
  readonly epochAfter: number;
  /** Absent where nobody could be asked any more. */
  readonly exactness?: ExactnessReport;
  readonly since?: SinceStart;
}

/**
 * Every page at the target and the ledger's records equal, then Settle. Not while the target stands
 * damaged: the source's image is needed then.
 */
export async function verifyAndSettle(
  step: StepInput,
  enterSettle: () => void,
): Promise<Verified> {
  const ledger = await decidingSteps.verifyMigration(step);
  if (ledger.settled) return ledger;
  const { digest, exactness, since } = await forwardSteps(step.target).verifyTarget(step);
  const { epochAfter } = ledger;
  // The ledger has ended it in another way than by Settle, or will.
  if (since !== undefined && since.code !== 'vm/stopped-itself') {
    return { digest, epochAfter, since };
  }
  if (digest !== ledger.digest) {
    throw ApplicationFailure.create(failureFields(
      'migration/digest', `target ${digest.slice(0, 16)}, ledger ${ledger.digest.slice(0, 16)}`,
    ));
  }
  const verified = { digest, epochAfter, ...(exactness === undefined ? {} : { exactness }) };
  if (exactness?.kind === 'damaged') return verified;
  enterSettle();
  const settled = await decidingSteps.settleMigration(step);
  const known = settled?.since ?? since;
  return known === undefined ? verified : { ...verified, since: known };
}

/** What a look at the target behind Settle found. */
interface LastLook {
  readonly since?: SinceStart;
  /** Lost, and nothing has started it again. */
  readonly isDown?: boolean;
  readonly warnings: readonly FailureReport[];
}

/**
 * Whether the VM was still the one that was moved when Settle was recorded: its VMM may have died
 * after the target's last look before it. Only a look behind Settle can tell; what dies after that
 * is no part of the move. A target that does not answer is a warning, unless the ledger knows more.
 */
async function lookBehindSettle(step: StepInput): Promise<LastLook> {
  const found = (since: SinceStart | undefined, warnings: LastLook['warnings']): LastLook =>
    since?.code === 'vm/memory-lost' ? { since, warnings: [] } : { warnings };
  try {
    return found((await hostSteps(step.target).verifyTarget(step)).since, []);
  } catch (error) {
    const failure = failureOf(error);
    if (failure.code === 'migration/not-here') {
      return { since: failureReport('vm/memory-lost', failure.detail), isDown: true, warnings: [] };
    }
    const known = await decidingSteps.settleMigration(step);
    return found(known?.since, failure.code === 'host/unreachable' ? [failure] : []);
  }
}

/**
 * Verify, settle, release. Only the target can hold this up; the VM runs there already. A start
 * that was taken back leads to the source all the same.
 */
export async function goForward(
  run: MigrationRun,
  undo: Compensations,
  figures: TransferFigures,
): Promise<MigrationOutcome> {
  const { step } = run;
  if (step === null) throw new TypeError('forward without a step');
  const { migration, vm, source, target, epoch } = step;
  const named = { version: 1, migration, vm, source, target } as const;
  run.status.pointOfNoReturnPassed = true;
  run.enter('verify', `host ${target}: every page there, both images compared`);
  try {
    const { digest, epochAfter, exactness, since: known } = await verifyAndSettle(
      step, () => run.enter('settle', 'the ledger'),
    );
    if (known?.code === 'migration/taken-back' && !(await isCommitted(run, undo, known))) {
      return await goBack(run, undo, known);
    }
    if (exactness?.kind === 'damaged') return { ...named, kind: 'damaged', figures, exactness };
    run.enter('release', `host ${source}`);
    const isAsked = known === undefined && patched(patches.looksBehindSettle);
    const nothing: LastLook = { warnings: [] };
    const [{ late, refused }, look] = await Promise.all([
      hostSteps(source).releaseSource(step).then(
        (counted) => ({ late: counted, refused: [] }),
        (error: unknown) => ({ late: null, refused: [failureOf(error)] }),
      ),
      isAsked ? lookBehindSettle(step) : nothing,
    ]);
    const warnings = [...refused, ...look.warnings];
    const since = known ?? look.since;
    if (since !== undefined && since.code !== 'vm/stopped-itself') {
      const runsOn = look.isDown === true ? null : target;
      return { ...named, kind: 'failed', failure: since, runsOn, compensationFailures: warnings };
    }
    return {
      ...named, kind: 'completed', figures: withLateFigures(figures, late), digest,
      epochBefore: epoch, epochAfter,
      warnings: since === undefined ? warnings : [since, ...warnings],
      ...(exactness === undefined ? {} : { exactness }),
    };
  } catch (error) {
    const failure = failureOf(error);
    return { ...named, kind: 'failed', failure, runsOn: target, compensationFailures: [] };
  }
}

/** Undoes what was done, last first; what could not be undone is part of the outcome. */
export async function goBack(
  run: MigrationRun,
  undo: Compensations,
  failure: FailureReport,
): Promise<MigrationOutcome> {
  const { vm, target, request } = run.input;
  const source = run.step?.source ?? null;
  if (run.mayBeReserved) run.waitFor('the hosts');
  const compensationFailures = await undo.run();
  const named = { version: 1, migration: migrationId(vm, request), vm, source, target } as const;
  if (failure.code === 'migration/cancelled') {
    const by = run.cancelledBy ?? failure.detail;
    return { ...named, kind: 'cancelled', by, compensationFailures };
  }
  const overdue = run.remainingMs === 0 && failure.code === 'host/unreachable';
  const told = overdue ? failureReport('migration/deadline', failure.detail) : failure;
  const runsOn = runsOnAfter(failure, source);
  return { ...named, kind: 'failed', failure: told, runsOn, compensationFailures };
}
