/** Measures where the time of a run goes: each part lasts from the end of the one before it. */
export class StepClock {
  readonly #begunMs = performance.now();
  readonly #parts: Record<string, number> = {};
  #lastMs = this.#begunMs;

  /** Ends a part; parts of one name are added. */
  end(part: string): void {
    const nowMs = performance.now();
    this.#parts[part] = Math.round((this.#parts[part] ?? 0) + nowMs - this.#lastMs);
    this.#lastMs = nowMs;
  }

  get partsMs(): Readonly<Record<string, number>> {
    return this.#parts;
  }

  /** Since it was made. */
  get wholeMs(): number {
    return Math.round(performance.now() - this.#begunMs);
  }
}
