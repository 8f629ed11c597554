/**
 * A host with twelve guests is drained to two others: all arrive whole, spread, while it tells the
 * truth of how far it is; also when its runner and the control worker are killed on the way.
 * Closes with the figure: the total against one move alone, times the
 * number of guests, divided by the moves at a time.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { EvacuationStage } from '../support/evacuation-stage.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, stageMsMax, until } from '../support/move-stage.ts';

const concurrency = 4;
/** Less than two idle cores can send: the link is what decides there. A guest sends 96 MB. */
const linkBytesPerSecond = 64_000_000;
/** A look asks the control worker ten things, and it shares the cores. */
const lookEveryMs = 1_000;

describeInLab('an evacuation', () => {
  let evacuation: EvacuationStage;

  beforeEach(async () => {
    evacuation = await EvacuationStage.raise();
  }, stageMsMax);
  afterEach(() => evacuation.stage.lower(), stageMsMax);

  /** Kills once so many have arrived; the source's runner has a session for each move. */
  async function killOnTheWay(
    left: { victim: string; afterMoved: number }[], movedCount: number,
  ): Promise<void> {
    const [next] = left;
    if (next === undefined || movedCount < next.afterMoved) return;
    left.shift();
    await evacuation.stage.killAndRestart(next.victim);
  }

  it.each([
    ['undisturbed', []],
    ['whose runner and control worker are killed', [
      { victim: 'host-h1', afterMoved: 3 }, { victim: 'control', afterMoved: 7 }]],
  ])('of twelve guests to two hosts, %s', async (how, kills) => {
    const { stage, guests } = evacuation;
    const left = [...kills];
    await evacuation.begin();
    const over = evacuation.evacuate('--concurrency', String(concurrency),
      '--bandwidth', `${linkBytesPerSecond}`);
    over.catch(() => undefined);
    await until('it has begun', () => evacuation.view().catch(() => null), 60_000);
    const percents: number[] = [];
    const etas: { readonly atMs: number; readonly etaMs: number }[] = [];
    for (let outcome = null; outcome === null; await sleep(lookEveryMs)) {
      const seen = await evacuation.view().catch((error: unknown) => {
        if (kills.length === 0) throw error;
        return null;
      });
      if (seen === null) continue;
      const { status, progress } = seen;
      percents.push(progress.percent);
      const { etaMs, counts } = progress;
      expect(counts.moving).toBeLessThanOrEqual(concurrency);
      if (etaMs !== null && counts.moved >= 3) etas.push({ atMs: performance.now(), etaMs });
      outcome = status.outcome;
      await killOnTheWay(left, counts.moved);
    }
    const endedAtMs = performance.now();
    const etaErrors = etas.map(({ atMs, etaMs }) => (atMs + etaMs - endedAtMs) / 1_000);
    const answer = await over;
    expect(left).toEqual([]);
    expect(answer).toMatchObject({
      exitCode: 0, outcome: 'completed', movedCount: guests.length, skipped: [] });
    expect(percents.at(-1)).toBe(100);
    expect(percents.filter((percent) => percent > 5 && percent < 95).length).toBeGreaterThan(3);
    const arrived = await evacuation.expectAllArrived();
    if (kills.length === 0) expect(arrived).toEqual({ h2: 6, h3: 6 });
    expect((await stage.ledger.listHosts()).find(({ facts }) => facts.name === 'h1'))
      .toMatchObject({ cordoned: true });

    // One move alone, with the part of the link that each had.
    const [first] = guests;
    if (first === undefined) throw new Error('no guest');
    const begunMs = performance.now();
    const { outcome } = await stage.move({
      vm: first.vm, target: (await first.host()).name === 'h2' ? 'h3' : 'h2',
      policy: { bandwidthBytesPerSecond: linkBytesPerSecond / concurrency, postCopy: 'never' } });
    const { figures } = await completed(outcome);
    const aloneMs = performance.now() - begunMs;
    const foreseenMs = aloneMs * guests.length / concurrency;
    const wrong = etaErrors.map((seconds) => Math.abs(seconds)).toSorted((a, b) => a - b);
    console.info(`evacuation, ${how}: ${guests.length} guests, ${concurrency} at a time, `
      + `${linkBytesPerSecond / 1e6} MB/s: ${(answer.totalMs / 1e3).toFixed(1)} s; one alone `
      + `${(aloneMs / 1e3).toFixed(1)} s (${(figures.bytesOnWire / 1e6).toFixed(0)} MB), so `
      + `${(answer.totalMs / foreseenMs).toFixed(2)} of ${(foreseenMs / 1e3).toFixed(1)} s; slots `
      + `used ${(answer.movesMs / concurrency / answer.totalMs * 100).toFixed(0)} %; ETA after three `
      + `moves off by ${wrong[Math.floor(wrong.length / 2)]?.toFixed(1) ?? '?'} s (median)`);
    // Idle slots are our doing, slow moves are the machine's.
    if (kills.length === 0) {
      expect(answer.movesMs / concurrency).toBeGreaterThan(answer.totalMs * 0.6);
    }
  }, 400_000);
});
