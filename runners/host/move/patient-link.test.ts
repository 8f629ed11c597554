/** How long a source tries to reach its target. */
import { describe, expect, it } from 'vitest';
import { CodedError, type FailureCode } from '../../../contracts/failures.ts';
import { timing } from '../../../contracts/limits.ts';
import { openPatiently } from './patient-link.ts';
import type { PeerConversation } from './ports.ts';

const link = {} as PeerConversation;

/** Opens with this failure until `awayMs` have passed; answers when it gave up or was welcomed. */
async function open(options: {
  readonly code: FailureCode; readonly awayMs: number;
  readonly isOver?: (atMs: number) => boolean;
}): Promise<{ readonly atMs: number; readonly opened: boolean }> {
  let nowMs = 0;
  const world = { nowMs: () => nowMs, sleep: async (ms: number) => { nowMs += ms; } };
  const openLink = async (): Promise<PeerConversation> => {
    if (nowMs < options.awayMs) throw new CodedError(options.code, 'away');
    return link;
  };
  const tried = openPatiently({ openLink, world }, () => options.isOver?.(nowMs) ?? false);
  const opened = await tried.then((found) => found === link, () => false);
  return { atMs: nowMs, opened };
}

describe('a link that is opened', () => {
  it('waits for a target that is away', async () => {
    for (const code of ['host/unreachable', 'link/lost'] as const) {
      expect(await open({ code, awayMs: 60_000 })).toEqual({ atMs: 60_000, opened: true });
    }
    const { atMs, opened } = await open({ code: 'link/lost', awayMs: Infinity });
    expect({ late: atMs >= timing.linkAwayMsMax, opened }).toEqual({ late: true, opened: false });
  });

  it('fails at once when it is refused, and when nobody waits any more', async () => {
    const awayMs = 60_000;
    expect(await open({ code: 'link/refused', awayMs })).toEqual({ atMs: 0, opened: false });
    const isOver = (atMs: number): boolean => atMs >= 1_000;
    expect(await open({ code: 'host/unreachable', awayMs, isOver }))
      .toEqual({ atMs: 1_000, opened: false });
  });
});
