/** Gaps between consecutive answers, as arithmetic on the times that the caller hands in. */

/** Monotonic, and ms since 1970, so that a gap can be held against the VMMs' events. */
export const nowMs = (): number => performance.timeOrigin + performance.now();

/** Gaps kept for percentiles: ten minutes of one answer every 2 ms. */
const gapsKeptMax = 300_000;

/** What a meter has seen since its last mark. */
export interface GapReport {
  readonly answers: number;
  /** Longest time between two consecutive answers, ms; the one before the mark counts as first. */
  readonly gapMsMax: number;
  /** When that longest one began, on the caller's clock; null before the first answer. */
  readonly gapMaxBeganMs: number | null;
  readonly gapMsP99: number;
  readonly gapMsMedian: number;
}

/** Value at quantile `q` (0 to 1) of unsorted figures, by nearest rank; 0 for none. Pure. */
export function quantile(figures: readonly number[], q: number): number {
  const sorted = figures.toSorted((a, b) => a - b);
  const rank = Math.max(0, Math.ceil(q * sorted.length) - 1);
  return sorted[rank] ?? 0;
}

/** Collects the gaps between answers. Times are monotonic ms of the caller's. */
export class GapMeter {
  #lastMs: number | null = null;
  #gaps: number[] = [];
  #answers = 0;
  #maxMs = 0;
  #maxBeganMs: number | null = null;

  /** An answer arrived. */
  tick(atMs: number): void {
    this.#answers += 1;
    if (this.#lastMs !== null) {
      const gapMs = atMs - this.#lastMs;
      if (gapMs > this.#maxMs) [this.#maxMs, this.#maxBeganMs] = [gapMs, this.#lastMs];
      if (this.#gaps.length < gapsKeptMax) this.#gaps.push(gapMs);
    }
    this.#lastMs = atMs;
  }

  /** Begins a new window; a gap that is open now counts in it with its full length. */
  mark(): void {
    this.#gaps = [];
    this.#answers = 0;
    this.#maxMs = 0;
    this.#maxBeganMs = null;
  }

  /** The window so far; the silence up to `atMs` counts as a gap, so that a dead guest shows. */
  report(atMs: number): GapReport {
    const openMs = this.#lastMs === null ? 0 : atMs - this.#lastMs;
    return {
      answers: this.#answers,
      gapMsMax: Math.max(this.#maxMs, openMs),
      gapMaxBeganMs: openMs > this.#maxMs ? this.#lastMs : this.#maxBeganMs,
      gapMsP99: quantile(this.#gaps, 0.99),
      gapMsMedian: quantile(this.#gaps, 0.5),
    };
  }
}
