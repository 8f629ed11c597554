/**
 * A campaign's results: one JSON line a run in a file that several sittings share, and their sum.
 * Reading and summing are pure but for the file itself.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { quantile } from '../client/gaps.ts';
import { nameOfCell, obstacleOf } from './cells.ts';
import type { Cell, Fault, Phase, Victim } from './cells.ts';
import type { RunRecord } from './run.ts';

const phase = z.string().transform((text) => text as Phase);
const victim = z.string().transform((text) => text as Victim);
const fault = z.string().transform((text) => text as Fault);

/** One line of the file. `-` for phase, victim and fault: the run that nothing is done to. */
export const resultLine = z.looseObject({
  kind: z.literal('run'), commit: z.string(), seed: z.int(), phase, victim, fault,
  outcome: z.string(), violations: z.array(z.string()), guestVerified: z.boolean(),
  vcpuRunningMax: z.number(), effectiveMax: z.number(), runningCopiesMax: z.number(),
  // JSON has no NaN: what could not be read back is null.
  lostWrites: z.number().nullable(), recoveredMs: z.number().nullable(),
  endedMs: z.number().nullable(),
  bytesSentAgain: z.number().nullable(), bytesSent: z.number(), told: z.string(),
  /** Lines from before it was known have none. */
  took: z.boolean().optional(),
  wholeMs: z.number(),
  /** Where the run's time went, ms; lines from before it was measured have none. */
  partsMs: z.record(z.string(), z.number()).optional(),
});
export type ResultLine = z.infer<typeof resultLine>;

/** A text without the folders of the machine that it was said on. Pure. */
const withoutFolders = (text: string): string =>
  text.replace(/(?:\/[\w.@+-]+)+\/([\w.@+-]+)/g, '$1');

/** A record as it is written. Pure. */
export function lineOf(
  record: RunRecord, { commit, seed }: { readonly commit: string; readonly seed: number },
): ResultLine {
  const { cell, lostWrites, told, ...rest } = record;
  const place = cell ?? { phase: '-' as Phase, victim: '-' as Victim, fault: '-' as Fault };
  return {
    kind: 'run', commit, seed, ...place, ...rest, violations: rest.violations.map(withoutFolders),
    told: withoutFolders(told),
    lostWrites: Number.isNaN(lostWrites) ? null : lostWrites,
  };
}

export const isCell = ({ fault: name }: ResultLine): boolean => name !== ('-' as Fault);

/** The file of results; made when it is not there. Failure: input/invalid when it can't be. */
export class Results {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
    try {
      mkdirSync(dirname(path), { recursive: true });
      appendFileSync(path, '');
    } catch (error) {
      throw new CodedError('input/invalid', `--out ${path}: ${(error as Error).message}`);
    }
  }

  add(line: object): void {
    appendFileSync(this.#path, `${JSON.stringify(line)}\n`);
  }

  /** Lines of a kind so far, of commits that count. */
  of<T extends { readonly commit: string }>(
    commits: { readonly has: (commit: string) => boolean }, shape: z.ZodType<T>,
  ): T[] {
    if (!existsSync(this.#path)) return [];
    return linesOf(readFileSync(this.#path, 'utf8'), shape)
      .filter(({ commit }) => commits.has(commit));
  }
}

/** Lines of a kind in a text; what a killed campaign left half-written is passed over. Pure. */
export const linesOf = <T>(text: string, shape: z.ZodType<T>): T[] =>
  text.split('\n').flatMap((line) => {
    try {
      const parsed = shape.safeParse(JSON.parse(line));
      return parsed.success ? [parsed.data] : [];
    } catch {
      return [];
    }
  });

/** True when the fault was done: not where its phase was not reached or the lab has failed. */
export const wasTried = (line: ResultLine): boolean =>
  isCell(line) && line.outcome !== 'not-reached' && line.outcome !== 'lab-failed';

/** Names of the cells that lines cover. */
export const coveredBy = (lines: readonly ResultLine[]): Set<string> =>
  new Set(lines.filter(wasTried).map(nameOfCell));

/** Lines that need no repetition: what went wrong on another commit is tried again. */
export const settledOn = (lines: readonly ResultLine[], commit: string): ResultLine[] =>
  lines.filter((line) => line.violations.length === 0 || line.commit === commit);

/** The last line of a campaign. */
export interface Summary {
  readonly kind: 'summary';
  readonly commit: string;
  readonly seed: number;
  readonly runs: number;
  readonly cells: {
    readonly chosen: number; readonly covered: number; readonly impossible: number;
  };
  readonly outcomes: Readonly<Record<string, number>>;
  readonly worst: {
    readonly runningCopiesMax: number;
    readonly effectiveMax: number;
    readonly lostWrites: number;
    readonly recoveredMs: number | null;
    readonly bytesSentAgain: number | null;
  };
  readonly median: { readonly recoveredMs: number | null; readonly bytesSentAgain: number | null };
  /** Where the time of a run went, ms. */
  readonly medianPartsMs: Readonly<Record<string, number>>;
  /** Cells with what must never be. */
  readonly violations: readonly { readonly cell: string; readonly what: readonly string[] }[];
}

const largest = (figures: readonly number[]): number | null =>
  (figures.length === 0 ? null : Math.max(...figures));
const middle = (figures: readonly number[]): number | null =>
  (figures.length === 0 ? null : quantile(figures, 0.5));
const known = (figures: readonly (number | null)[]): number[] =>
  figures.filter((figure) => figure !== null);

function medianParts(lines: readonly ResultLine[]): Record<string, number> {
  const known = lines.flatMap(({ partsMs }) => (partsMs === undefined ? [] : [partsMs]));
  const names = [...new Set(known.flatMap((parts) => Object.keys(parts)))];
  return Object.fromEntries(names.map((name) =>
    [name, quantile(known.map((parts) => parts[name] ?? 0), 0.5)]));
}

/** Sums up lines of commits that count over the chosen cells. Pure. */
export function summarise(
  lines: readonly ResultLine[],
  { commit, seed, chosen }: {
    readonly commit: string; readonly seed: number; readonly chosen: readonly Cell[];
  },
): Summary {
  const runs = lines.filter(isCell);
  const covered = coveredBy(runs);
  const outcomes: Record<string, number> = {};
  for (const { outcome } of runs) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  const recovered = known(runs.map(({ recoveredMs }) => recoveredMs));
  const again = known(runs.map(({ bytesSentAgain }) => bytesSentAgain));
  return {
    kind: 'summary', commit, seed, runs: runs.length,
    cells: {
      chosen: chosen.length,
      covered: chosen.filter((cell) => covered.has(nameOfCell(cell))).length,
      impossible: chosen.filter((cell) => obstacleOf(cell) !== null).length,
    },
    outcomes,
    worst: {
      runningCopiesMax: largest(runs.map((line) => line.runningCopiesMax)) ?? 0,
      effectiveMax: largest(runs.map(({ effectiveMax }) => effectiveMax)) ?? 0,
      lostWrites: runs.reduce((sum, { lostWrites }) => sum + (lostWrites ?? 0), 0),
      recoveredMs: largest(recovered), bytesSentAgain: largest(again),
    },
    median: { recoveredMs: middle(recovered), bytesSentAgain: middle(again) },
    medianPartsMs: medianParts(runs),
    violations: runs.filter(({ violations }) => violations.length > 0)
      .map((line) => ({ cell: nameOfCell(line), what: line.violations })),
  };
}
