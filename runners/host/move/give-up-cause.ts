/** Which of several reasons a move that is given up before STOP is called by. */
import { CodedError, failureReport, type FailureReport } from '../../../contracts/failures.ts';
import { codedErrorOf } from '../../../contracts/foreign-errors.ts';
import type { SessionOutcome } from '../../../contracts/migration.ts';
import type { ConvergenceDecision } from '../../data-plane/sessions.ts';

/** A target that gives up ends its VMM before it says why, ms. */
const targetReasonMs = 2_000;

const isLink = ({ code }: FailureReport | CodedError): boolean => code.startsWith('link/');
/** What a source sees of a target that went: a lane, the tunnel of device state or a disk breaks. */
const isEcho = (error: CodedError): boolean =>
  isLink(error) || error.code === 'engine/failed' || error.code === 'disk/mirror'
  || error.code === 'runner/session-lost';

/** Failures: migration/deadline, migration/not-converging. */
export function requireConverged(decision: ConvergenceDecision): void {
  if (decision.decision !== 'give-up') return;
  const isLate = decision.cause === 'deadline';
  throw new CodedError(isLate ? 'migration/deadline' : 'migration/not-converging', decision.reason);
}

/**
 * The failure to report for `error`. A target that gives up lets go of the lanes first, so what
 * broke here may be only what was seen of it: its own reason is then waited for, and says more,
 * unless that is again only a broken link.
 */
export async function giveUpCause(error: unknown, target: {
  /** Rejects when the target has said why; null when it can't any more. */
  readonly lost: (() => Promise<never>) | null;
  readonly told: () => FailureReport | null;
  readonly sleep: (ms: number) => Promise<void>;
}): Promise<CodedError> {
  const coded = codedErrorOf(error);
  if (!isEcho(coded)) return coded;
  if (target.lost !== null && target.told() === null) {
    await Promise.race([target.lost().catch(() => undefined), target.sleep(targetReasonMs)]);
  }
  const told = target.told();
  return told === null || (isLink(told) && !isLink(coded)) ? coded : new CodedError(told.code, told.detail, coded);
}

/** How a move ended whose VM was never stopped: it runs on, unless it ended by itself. */
export function outcomeBeforeStop({ code, detail }: CodedError): SessionOutcome {
  if (code === 'migration/cancelled') return { kind: 'cancelled', by: detail.replace(/^by /, '') };
  return {
    kind: 'failed',
    failure: failureReport(code, detail),
    resumed: code !== 'vm/stopped-itself' && code !== 'vmm/gone',
  };
}

/** Why a VM that stood goes on at its source, when the target said nothing (`told`) itself. */
export function whyTakenBack(told: FailureReport | null, isLinked: boolean): FailureReport {
  // Nothing is tried afresh: the ledger has ended the migration.
  if (told?.code === 'runner/session-lost') return failureReport('link/lost', told.detail);
  if (told !== null) return told;
  return isLinked ? failureReport('migration/deadline', 'the target did not get ready in time')
    : failureReport('link/lost', 'to the target, while the VM stood');
}

/**
 * A session whose runner took the move over from one that died: a target that refuses it has given
 * up when the lanes of the dead one broke. That is no matter of certificates, and a fresh attempt
 * helps.
 */
export function lostWithRunner(error: unknown, isSuccessor: boolean): unknown {
  const isLost = isSuccessor && error instanceof CodedError && error.code === 'link/refused';
  return isLost ? new CodedError('runner/session-lost', error.detail, error) : error;
}
