/**
 * Whether something grows with the moves, from readings after each of them. Pure. The slope is the
 * median over pairs of readings (Theil and Sen), of which half would have to be odd to turn it; a
 * process that was started again begins a new life, and each life counts from its middle on, when
 * caches are full.
 */
import { quantile } from '../client/gaps.ts';

/** What is read of a process, or of the lab as a whole. */
export const measures = [
  'memoryBytes', 'descriptors', 'threads', 'files', 'processes', 'historyEvents', 'historyBytes',
] as const;
export type Measure = (typeof measures)[number];

/** One reading. */
export interface Reading {
  /** Process of the lab, or place, that is read. */
  readonly who: string;
  readonly what: Measure;
  /** Tells the process from the one that is started in its place. */
  readonly life: string;
  /** Moves of the sitting so far. */
  readonly moves: number;
  readonly value: number;
}

/** What a measure may grow: it grows when it is above both. */
export interface Bound {
  readonly perMove: number;
  /** Over all of the later half of the longest life: what comes and goes by itself. */
  readonly noise: number;
}

const kib = 1024;
const few: Bound = { perMove: 0.05, noise: 4 };
/** A leak of a buffer, a handle or a file a move is above these after some dozens of moves. */
const boundOf: Readonly<Record<Measure, Bound>> = {
  memoryBytes: { perMove: 64 * kib, noise: 16 * kib * kib },
  descriptors: few, threads: few, files: few, processes: few,
  historyEvents: { perMove: 0.5, noise: 50 },
  historyBytes: { perMove: kib, noise: 64 * kib },
};
/** Temporal's dev server keeps every history of a sitting, in memory and in its database. */
const foreign: Readonly<Record<string, Partial<Record<Measure, Bound>>>> = {
  'temporal/server': { memoryBytes: { perMove: 1024 * kib, noise: 64 * kib * kib } },
};
export const boundFor = (who: string, what: Measure): Bound =>
  foreign[who]?.[what] ?? boundOf[what];

/** Fewer readings in the later half of a life say nothing. */
const readingsMin = 6;

/** What became of one measure of one process or place. */
export interface Growth {
  readonly who: string;
  readonly what: Measure;
  readonly readings: number;
  /** At the first and at the last reading of all. */
  readonly first: number;
  readonly last: number;
  readonly largest: number;
  /** Null where no life was long enough. */
  readonly perMove: number | null;
  /** Slope times the later half of the longest life. */
  readonly grownBy: number | null;
  readonly verdict: 'steady' | 'grows' | 'too short';
}

const laterHalf = (life: readonly Reading[]): readonly Reading[] => {
  const [from, to] = [life[0]?.moves ?? 0, life.at(-1)?.moves ?? 0];
  return life.filter(({ moves }) => moves >= (from + to) / 2);
};

function slopesOf(life: readonly Reading[]): number[] {
  return life.flatMap((one, index) => life.slice(index + 1)
    .filter(({ moves }) => moves > one.moves)
    .map((other) => (other.value - one.value) / (other.moves - one.moves)));
}

function growthOfOne(readings: readonly Reading[]): Omit<Growth, 'who' | 'what'> {
  const [one] = readings;
  const lives = new Map<string, Reading[]>();
  for (const reading of readings) {
    lives.set(reading.life, [...lives.get(reading.life) ?? [], reading]);
  }
  const halves = [...lives.values()].map(laterHalf).filter(({ length }) => length >= readingsMin);
  const slopes = halves.flatMap(slopesOf);
  const seen = {
    readings: readings.length, first: one?.value ?? 0, last: readings.at(-1)?.value ?? 0,
    largest: Math.max(...readings.map(({ value }) => value)),
  };
  if (one === undefined || slopes.length === 0) {
    return { ...seen, perMove: null, grownBy: null, verdict: 'too short' };
  }
  const perMove = quantile(slopes, 0.5);
  const span = Math.max(...halves.map((half) =>
    (half.at(-1)?.moves ?? 0) - (half[0]?.moves ?? 0)));
  const bound = boundFor(one.who, one.what);
  const grows = perMove > bound.perMove && perMove * span > bound.noise;
  return { ...seen, perMove, grownBy: perMove * span, verdict: grows ? 'grows' : 'steady' };
}

/** Growth of everything that was read, in the order of its first reading. */
export function growthOf(readings: readonly Reading[]): Growth[] {
  const all = new Map<string, Reading[]>();
  for (const reading of readings) {
    const key = `${reading.who} ${reading.what}`;
    const known = all.get(key);
    if (known === undefined) all.set(key, [reading]);
    else known.push(reading);
  }
  return [...all.values()].flatMap((known) => known.slice(0, 1).map(({ who, what }) => ({
    who, what, ...growthOfOne(known) })));
}
