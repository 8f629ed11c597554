/**
 * Opens the link of a move. Its target has just been prepared, or was reached before: that it is away
 * now, cut off or with a runner that is not back yet, is waited out.
 */
import { CodedError } from '../../../contracts/failures.ts';
import { timing } from '../../../contracts/limits.ts';
import type { MoveWorld, PeerConversation, SourceMoveOptions } from './ports.ts';

/** Between two tries, ms. */
const retryEveryMs = 250;
const away: ReadonlySet<string> = new Set(['host/unreachable', 'link/lost']);

/** Failures: those of `openLink`, at once where waiting does not help. */
export async function openPatiently(
  options: Pick<SourceMoveOptions, 'openLink'> & {
    readonly world: Pick<MoveWorld, 'nowMs' | 'sleep'>;
  },
  isOver: () => boolean,
): Promise<PeerConversation> {
  const { openLink, world } = options;
  const until = world.nowMs() + timing.linkAwayMsMax;
  for (;;) {
    try {
      return await openLink();
    } catch (error) {
      const isAway = error instanceof CodedError && away.has(error.code);
      if (!isAway || isOver() || world.nowMs() >= until) throw error;
    }
    await world.sleep(retryEveryMs);
  }
}
