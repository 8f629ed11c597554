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
  wholeMs: z.number(),
});
export type ResultLine = z.infer<typeof resultLine>;

/** A record as it is written. Pure. */
export function lineOf(
  record: RunRecord, { commit, seed }: { readonly commit: string; readonly seed: number },
): ResultLine {
  const { cell, lostWrites, ...rest } = record;
  const place = cell ?? { phase: '-' as Phase, victim: '-' as Victim, fault: '-' as Fault };
  return {
    kind: 'run', commit, seed, ...place, ...rest, violations: [...rest.violations],
    lostWrites: Number.isNaN(lostWrites) ? null : lostWrites,
  };
}

const isCell = ({ fault: name }: ResultLine): boolean => name !== ('-' as Fault);

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

  /** Lines of a kind and commit so far; what a killed campaign left half-written is passed over. */
  of<T extends { readonly commit: string }>(commit: string, shape: z.ZodType<T>): T[] {
    if (!existsSync(this.#path)) return [];
    return readFileSync(this.#path, 'utf8').split('\n').flatMap((text) => {
      try {
        const parsed = shape.safeParse(JSON.parse(text));
        return parsed.success && parsed.data.commit === commit ? [parsed.data] : [];
      } catch {
        return [];
      }
    });
  }
}

/** Cells that lines cover: a phase that was not reached, or a lab that failed, covers nothing. */
export const coveredBy = (lines: readonly ResultLine[]): Set<string> => new Set(lines
  .filter((line) => isCell(line) && line.outcome !== 'not-reached' && line.outcome !== 'lab-failed')
  .map(nameOfCell));

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
  /** Cells with what must never be. */
  readonly violations: readonly { readonly cell: string; readonly what: readonly string[] }[];
}

const largest = (figures: readonly number[]): number | null =>
  (figures.length === 0 ? null : Math.max(...figures));
const middle = (figures: readonly number[]): number | null =>
  (figures.length === 0 ? null : quantile(figures, 0.5));
const known = (figures: readonly (number | null)[]): number[] =>
  figures.filter((figure) => figure !== null);

/** Sums up lines of one commit over the chosen cells. Pure. */
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
    violations: runs.filter(({ violations }) => violations.length > 0)
      .map((line) => ({ cell: nameOfCell(line), what: line.violations })),
  };
}
