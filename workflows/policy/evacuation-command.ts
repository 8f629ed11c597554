/** Which commands an evacuation takes, and its policy after them: pure. */
import type {
  EvacuationCommand, EvacuationPhase, EvacuationPolicy,
} from '../../contracts/evacuation.ts';
import { limits } from '../../contracts/limits.ts';
import type { CommandRefusal } from './accept-command.ts';

const isWhole = (value: unknown, min: number, max: number): value is number =>
  typeof value === 'number' && Number.isSafeInteger(value) && value >= min && value <= max;
const invalid = (detail: string): CommandRefusal => ({ code: 'input/invalid', detail });

function wrongFigure(command: EvacuationCommand): CommandRefusal | null {
  switch (command.kind) {
    case 'set-bandwidth':
      return isWhole(command.bandwidthBytesPerSecond, 0, Number.MAX_SAFE_INTEGER) ? null
        : invalid('bandwidthBytesPerSecond must be a whole number, 0 for no limit');
    case 'set-concurrency':
      return isWhole(command.concurrency, 1, limits.evacuationConcurrencyMax) ? null
        : invalid(`concurrency must be a whole number, 1 to ${limits.evacuationConcurrencyMax}`);
    case 'cancel':
      return typeof command.by === 'string' && command.by.length <= 200 ? null
        : invalid('by must be a text of at most 200 characters');
    case 'pause':
    case 'resume':
      return null;
  }
}

/** Null when the command may be given, else why not. */
export function evacuationRefusal(
  command: EvacuationCommand,
  context: { readonly phase: EvacuationPhase; readonly cancelled: boolean },
): CommandRefusal | null {
  const wrong = wrongFigure(command);
  if (wrong !== null) return wrong;
  if (context.phase === 'done') {
    return { code: 'evacuation/unknown', detail: 'the evacuation has ended' };
  }
  if (command.kind === 'cancel' || !context.cancelled) return null;
  return { code: 'migration/cancelled', detail: `${command.kind}: the evacuation is cancelled` };
}

/** The policy after a command, for moves that have not begun. */
export function evacuationPolicyAfter(
  policy: EvacuationPolicy, command: EvacuationCommand,
): EvacuationPolicy {
  if (command.kind === 'set-bandwidth') {
    return { ...policy, bandwidthBytesPerSecond: command.bandwidthBytesPerSecond };
  }
  return command.kind === 'set-concurrency'
    ? { ...policy, concurrency: command.concurrency } : policy;
}
