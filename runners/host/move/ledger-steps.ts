/**
 * Reads and proposals of a host that must know what the ledger decided: they wait for an answer
 * as long as it takes, because nothing may be concluded from silence.
 */
import { CodedError } from '../../../contracts/failures.ts';
import type { VmName } from '../../../contracts/identity.ts';
import type { LedgerEvent, Verdict, VmEntry } from '../../../contracts/ownership.ts';
import type { MoveNote, MoveWorld, SourceMoveOptions } from './ports.ts';

/** Pause between two tries while the ledger is silent, ms. */
const retryEveryMs = 100;

/** What asking takes: the ledger, and patience. */
type LedgerAccess = Pick<MoveWorld, 'ledger' | 'sleep'>;

const isSilence = (error: unknown): boolean =>
  error instanceof CodedError && error.code === 'ownership/unreachable';

/** Linearizable read that waits out a silent ledger. */
export async function readEntry(world: LedgerAccess, vm: VmName): Promise<VmEntry | null> {
  for (;;) {
    try {
      return await world.ledger.readVm(vm);
    } catch (error) {
      if (!isSilence(error)) throw error;
      await world.sleep(retryEveryMs);
    }
  }
}

/**
 * Proposes until an answer comes; a repeat of an accepted event does nothing, so repeating is safe.
 * Answers the last verdict: accepted when all were, else the refusal.
 */
export async function proposeUntilAnswered(
  world: LedgerAccess, events: readonly LedgerEvent[],
): Promise<Verdict> {
  for (;;) {
    try {
      const verdicts = await world.ledger.propose(events);
      const last = verdicts.at(-1);
      if (last === undefined) throw new CodedError('internal', 'the ledger answered no verdict');
      return last;
    } catch (error) {
      if (!isSilence(error)) throw error;
      await world.sleep(retryEveryMs);
    }
  }
}

/** How far the source's half is, with what its next runner needs to serve the frozen image. */
export const sourceNote = (
  { migration, epoch, target, lanes }: SourceMoveOptions, stage: MoveNote['stage'],
): MoveNote => ({ version: 1, migration, side: 'source', epoch, peer: target, stage, lanes });
