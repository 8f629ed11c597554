/**
 * Exit codes of `novacron`: the part of an answer that scripts read. Decides the code from a
 * failure or an outcome; documented in docs/api/cli.md, which is generated from this table.
 */
import type { EvacuationOutcome } from '../contracts/evacuation.ts';
import type { FailureCode } from '../contracts/failures.ts';
import type { MigrationOutcome } from '../contracts/migration.ts';

export const exitCodes = {
  ok: 0,
  internal: 1,
  usage: 2,
  refused: 3,
  moveFailed: 4,
  cancelled: 5,
  unreachable: 6,
  notAllowed: 7,
  vmDown: 8,
  interrupted: 130,
} as const;
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes];

/** What each code means, for the reference. */
export const exitCodeMeanings: Readonly<Record<ExitCode, string>> = {
  0: 'done, or the state was already so',
  1: 'a mistake of ours; report it with the log',
  2: 'wrong usage, configuration or input; nothing was changed',
  3: 'refused (preflight, state of the VM, host or migration); nothing was changed',
  4: 'the step failed; the VM is where the answer says, after a failed move at its source',
  5: 'cancelled; the VM goes on at its source',
  6: 'Temporal, the ledger, a host or the enrolment endpoint does not answer',
  7: 'the certificate does not allow it, is revoked or expired',
  8: 'the step failed and the VM runs nowhere: act',
  130: 'interrupted while watching; what was watched goes on',
};

const notAllowedCodes: readonly FailureCode[] = ['link/refused', 'ownership/role',
  'certificate/revoked'];
const refusedFamilies = ['preflight', 'vm', 'host', 'migration', 'evacuation'];
/** Codes of those families that are failures of a step that had begun. */
const failedCodes: readonly FailureCode[] = ['vm/start-failed', 'vm/stopped-itself',
  'migration/deadline', 'migration/not-converging', 'migration/digest', 'migration/not-here'];

/** Exit code of a failure. */
export function exitCodeOfFailure(code: FailureCode): ExitCode {
  const [family = '', kind = ''] = code.split('/');
  if (code === 'internal') return exitCodes.internal;
  if (family === 'input') return exitCodes.usage;
  if (kind === 'unreachable' || code === 'link/lost') return exitCodes.unreachable;
  if (notAllowedCodes.includes(code)) return exitCodes.notAllowed;
  if (code === 'migration/cancelled') return exitCodes.cancelled;
  if (failedCodes.includes(code)) return exitCodes.moveFailed;
  if (refusedFamilies.includes(family) || code === 'ownership/refused') return exitCodes.refused;
  return exitCodes.moveFailed;
}

/** Exit code of an evacuation that ended; some VMs still there is a failure of the whole. */
export function exitCodeOfEvacuation({ kind, failure }: EvacuationOutcome): ExitCode {
  if (failure !== null) return exitCodeOfFailure(failure.code);
  if (kind === 'cancelled') return exitCodes.cancelled;
  return kind === 'completed' ? exitCodes.ok : exitCodes.moveFailed;
}

/** Exit code of a move that ended. */
export function exitCodeOfOutcome(outcome: MigrationOutcome): ExitCode {
  switch (outcome.kind) {
    case 'completed': return exitCodes.ok;
    case 'cancelled': return exitCodes.cancelled;
    case 'damaged': return exitCodes.vmDown;
    case 'failed': {
      const code = exitCodeOfFailure(outcome.failure.code);
      if (code === exitCodes.refused || code === exitCodes.usage) return code;
      return outcome.runsOn === null ? exitCodes.vmDown : exitCodes.moveFailed;
    }
  }
}
