/**
 * What a source still does once its VM runs elsewhere: it serves the pages that the target misses,
 * then compares its frozen image with what was sent of it. Neither holds anybody up.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { ExactnessMode } from '../../../contracts/exactness.ts';
import { timing } from '../../../contracts/limits.ts';
import type { SourceSession } from '../../data-plane/sessions.ts';

/** Calls `served` when the target has every page. */
export async function tendFrozenImage(options: {
  readonly missingPageCount: number;
  readonly exactness: ExactnessMode | undefined;
  readonly session: Pick<SourceSession, 'servePostCopy' | 'checkImage'>;
  readonly served: () => void;
  readonly log: Logger;
}): Promise<void> {
  const { missingPageCount, exactness, session, served, log } = options;
  try {
    if (missingPageCount > 0) await session.servePostCopy();
  } catch (error) {
    log.error({ error: String(error) }, 'post-copy failed');
    return;
  }
  served();
  if (exactness === 'off') return;
  await sleep(timing.exactnessCheckAfterMs);
  try {
    log.info({ compared: await session.checkImage() }, 'the frozen image was compared');
  } catch (error) {
    log.warn({ error: String(error) }, 'the frozen image was not compared');
  }
}
