/** Waits that end: every one has a limit, and says by null that it was reached. */
import { setTimeout as sleep } from 'node:timers/promises';

const lookEveryMs = 100;

/** What `look` sees first, asked every 100 ms; null after `msMax`. */
export async function until<T>(
  look: () => Promise<T | null> | T | null, msMax: number,
): Promise<T | null> {
  for (const end = performance.now() + msMax; ;) {
    const seen = await look();
    if (seen !== null || performance.now() > end) return seen;
    await sleep(lookEveryMs);
  }
}

/** What comes of `work`; null when it takes longer than `msMax` or fails. */
export async function within<T>(work: Promise<T>, msMax: number): Promise<T | null> {
  const limit = new AbortController();
  const timer = sleep(msMax, null, { signal: limit.signal }).catch(() => null);
  try {
    return await Promise.race([work.catch(() => null), timer]);
  } finally {
    limit.abort();
  }
}
