/** Which commands a move takes, by its phase: pure, the reason of a refusal included. */
import type { FailureCode } from '../../contracts/failures.ts';
import type {
  MigrationPhase, MigrationPolicy, SessionCommand,
} from '../../contracts/migration.ts';
import { commandFits } from './history-budget.ts';

/** What the decision depends on. */
export interface CommandContext {
  readonly phase: MigrationPhase;
  readonly pointOfNoReturnPassed: boolean;
  readonly cancelled: boolean;
  readonly policy: MigrationPolicy;
  readonly historyEvents: number;
  /** Until then a session that did not answer is left alone, from now, ms; 0: it may be asked. */
  readonly silentForMs: number;
}
export interface CommandRefusal {
  readonly code: FailureCode;
  readonly detail: string;
}

/** Ten minutes: a longer blackout is a stop, not a live move. */
const downtimeBudgetMsMax = 600_000;

const isCopying = (phase: MigrationPhase): boolean =>
  phase === 'copy-disk' || phase === 'copy-memory';
const isWhole = (value: unknown): value is number =>
  typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;

function invalidFigure(command: SessionCommand): string | null {
  if (command.kind === 'set-bandwidth') {
    return isWhole(command.bandwidthBytesPerSecond) ? null
      : 'bandwidthBytesPerSecond must be a whole number, 0 for no limit';
  }
  if (command.kind === 'set-downtime-budget') {
    const budget: unknown = command.downtimeBudgetMs;
    return isWhole(budget) && budget >= 1 && budget <= downtimeBudgetMsMax ? null
      : `downtimeBudgetMs must be a whole number from 1 to ${downtimeBudgetMsMax}`;
  }
  if (command.kind === 'cancel') {
    return typeof command.by === 'string' && command.by.length <= 200 ? null
      : 'by must be a text of at most 200 characters';
  }
  return null;
}

/** Null when the command may be given, else why not. */
export function refusalOf(command: SessionCommand, context: CommandContext): CommandRefusal | null {
  const { phase, pointOfNoReturnPassed, cancelled, policy, historyEvents, silentForMs } = context;
  const figure = invalidFigure(command);
  if (figure !== null) return { code: 'input/invalid', detail: figure };
  if (phase === 'done') return { code: 'migration/past-return', detail: 'the move has ended' };
  if (pointOfNoReturnPassed) {
    return {
      code: 'migration/past-return',
      detail: `${command.kind} comes too late: the VM runs at the target`,
    };
  }
  if (command.kind === 'cancel') {
    return cancelled && !commandFits(historyEvents)
      ? { code: 'migration/cancelled', detail: 'it is being cancelled already' } : null;
  }
  if (cancelled || phase === 'compensating') {
    return { code: 'migration/cancelled', detail: `${command.kind}: the move is being undone` };
  }
  if (!commandFits(historyEvents)) {
    return { code: 'input/invalid', detail: 'too many commands were given to this move' };
  }
  if (silentForMs > 0) {
    const seconds = Math.ceil(silentForMs / 1_000);
    return {
      code: 'migration/not-here',
      detail: `the session did not answer the last command: again in ${seconds} s`,
    };
  }
  if (command.kind === 'pause' || command.kind === 'resume') {
    return isCopying(phase) ? null
      : { code: 'input/invalid', detail: `${command.kind}: nothing is copied in ${phase}` };
  }
  if (command.kind !== 'post-copy-now') return null;
  if (policy.postCopy === 'never') {
    return { code: 'input/invalid', detail: 'post-copy was not consented to in the request' };
  }
  return phase === 'copy-memory' ? null
    : { code: 'input/invalid', detail: `post-copy-now: no memory is copied in ${phase}` };
}

/** The policy after a command, for steps that have not begun. */
export function policyAfter(policy: MigrationPolicy, command: SessionCommand): MigrationPolicy {
  if (command.kind === 'set-bandwidth') {
    return { ...policy, bandwidthBytesPerSecond: command.bandwidthBytesPerSecond };
  }
  if (command.kind === 'set-downtime-budget') {
    return { ...policy, downtimeBudgetMs: command.downtimeBudgetMs };
  }
  return policy;
}
