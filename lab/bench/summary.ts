/** Medians, spreads and ratios of a series of runs. Pure. */
import { quantile } from '../client/gaps.ts';
import type { EngineName, TotalPartsMs } from './engine.ts';
import type { RunRecord } from './measure.ts';

/** Figures that are compared. */
export const comparedFigures = [
  'totalMs', 'wholeMs', 'downtimeMs', 'outsideGapMsMax', 'redisGapMsMax', 'restingGapMsP99', 'wireBytes',
  'cpuSeconds', 'rounds',
] as const;
type Figure = (typeof comparedFigures)[number];

/** Of the good runs of one engine. */
export interface FigureSummary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}
export interface EngineSummary {
  readonly engine: EngineName;
  readonly runs: number;
  readonly completed: number;
  /** Completed for the VMM, but the guest did not verify. */
  readonly damaged: number;
  readonly failed: number;
  /** Not counted: the link emulator did not keep up. */
  readonly linkLate: number;
  /** Medians of the parts of the total. */
  readonly totalPartsMs: Readonly<Partial<Record<keyof TotalPartsMs, number>>>;
  readonly figures: Readonly<Partial<Record<Figure, FigureSummary>>>;
}

function summarise(engine: EngineName, runs: readonly RunRecord[]): EngineSummary {
  const good = runs.filter((run) => run.guestVerified && run.outcome === 'completed');
  const figures: Partial<Record<Figure, FigureSummary>> = {};
  for (const name of comparedFigures) {
    const values = good.map((run) => run[name]).filter((value) => value !== null);
    if (values.length === 0) continue;
    figures[name] = {
      median: quantile(values, 0.5), min: Math.min(...values), max: Math.max(...values),
    };
  }
  const having = (outcome: RunRecord['outcome']): number =>
    runs.filter((run) => run.outcome === outcome).length;
  const [damaged, linkLate] = [having('guest-damaged'), having('link-late')];
  return {
    engine, runs: runs.length, completed: good.length, damaged, linkLate,
    failed: runs.length - good.length - damaged - linkLate,
    totalPartsMs: partMedians(good), figures,
  };
}

function partMedians(good: readonly RunRecord[]): EngineSummary['totalPartsMs'] {
  const parts = good.map((run) => run.totalPartsMs).filter((part) => part !== null);
  if (parts.length === 0) return {};
  const names = ['connectMs', 'diskMs', 'memoryMs', 'downtimeMs', 'closingMs'] as const;
  return Object.fromEntries(
    names.map((name) => [name, quantile(parts.map((part) => part[name]), 0.5)]));
}

/** direct's median over the peer's, per figure; below 1 is better. */
export type Ratios = Readonly<Partial<Record<Figure, number>>>;

/** Last line of the benchmark. `bestPeer` is the lowest median of any peer, per figure. */
export interface BenchSummary {
  readonly msg: 'summary';
  readonly engines: readonly EngineSummary[];
  readonly ratios: Readonly<Partial<Record<EngineName, Ratios>>>;
  readonly bestPeer: Readonly<Partial<Record<Figure, { engine: EngineName; ratio: number }>>>;
}

/** Sums a series up; the ratios are empty when `direct` was not among the engines. */
export function summariseRuns(runs: readonly RunRecord[]): BenchSummary {
  const names = [...new Set(runs.map((run) => run.engine))];
  const engines = names.map(
    (name) => summarise(name, runs.filter((run) => run.engine === name)));
  const direct = engines.find((summary) => summary.engine === 'direct');
  const peers = engines.filter((summary) => summary.engine !== 'direct');
  const ratios: Partial<Record<EngineName, Ratios>> = {};
  const bestPeer: Partial<Record<Figure, { engine: EngineName; ratio: number }>> = {};
  for (const figure of comparedFigures) {
    const own = direct?.figures[figure]?.median;
    if (own === undefined) continue;
    let best: { engine: EngineName; median: number } | null = null;
    for (const peer of peers) {
      const median = peer.figures[figure]?.median;
      if (median === undefined || median === 0) continue;
      ratios[peer.engine] = { ...ratios[peer.engine], [figure]: ratioOf(own, median) };
      if (best === null || median < best.median) best = { engine: peer.engine, median };
    }
    if (best !== null) bestPeer[figure] = { engine: best.engine, ratio: ratioOf(own, best.median) };
  }
  return { msg: 'summary', engines, ratios, bestPeer };
}

const ratioOf = (own: number, other: number): number => Number((own / other).toFixed(3));
