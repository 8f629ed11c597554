/** Lines of a soak: one a move, the last one sums up; several sittings share a file. Pure. */
import { z } from 'zod';
import { nameOfCell } from '../faults/cells.ts';
import { growthOf, measures } from './growth.ts';
import type { Growth } from './growth.ts';
import type { SoakStep } from './soak.ts';

const reading = z.strictObject({
  who: z.string(), what: z.enum(measures), life: z.string(), moves: z.number(), value: z.number(),
});

/** One line of the file. */
export const soakLine = z.strictObject({
  kind: z.literal('sample'), commit: z.string(), seed: z.number(), sitting: z.number(),
  /** What was done to the move; null: nothing. */
  fault: z.string().nullable(),
  outcome: z.string(), told: z.string(), violations: z.array(z.string()),
  guestVerified: z.boolean(),
  // JSON has no NaN: what could not be read back is null.
  lostWrites: z.number().nullable(), recoveredMs: z.number().nullable(),
  runningCopiesMax: z.number(), bytesSent: z.number(), wholeMs: z.number(),
  readings: z.array(reading),
});
export type SoakLine = z.infer<typeof soakLine>;

/** A step as it is written. */
export function lineOf(
  { record, readings }: SoakStep,
  of: { readonly commit: string; readonly seed: number; readonly sitting: number },
): SoakLine {
  const { cell, outcome, told, guestVerified, recoveredMs, bytesSent, wholeMs } = record;
  return {
    kind: 'sample', ...of, fault: cell === null ? null : nameOfCell(cell), outcome, told,
    violations: [...record.violations], guestVerified,
    lostWrites: Number.isNaN(record.lostWrites) ? null : record.lostWrites, recoveredMs,
    runningCopiesMax: record.runningCopiesMax, bytesSent, wholeMs, readings: [...readings],
  };
}

/** The last line. */
export interface SoakSummary {
  readonly kind: 'summary';
  readonly commit: string;
  readonly seed: number;
  readonly sittings: number;
  readonly minutes: number;
  readonly moves: number;
  readonly faults: number;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly lostWrites: number;
  readonly runningCopiesMax: number;
  readonly violations: readonly string[];
  readonly grows: readonly string[];
  readonly growth: readonly Growth[];
  /** `too short`: nothing went wrong, and growth of something could not be told. */
  readonly verdict: 'passed' | 'failed' | 'too short';
}

const nameOf = ({ who, what }: Growth): string => `${who}: ${what}`;

function verdictOf(
  lines: readonly SoakLine[], growth: readonly Growth[],
): SoakSummary['verdict'] {
  const isBad = ({ violations, lostWrites }: SoakLine): boolean =>
    violations.length > 0 || lostWrites !== 0;
  if (lines.some(isBad) || growth.some(({ verdict }) => verdict === 'grows')) return 'failed';
  const told = growth.every(({ verdict }) => verdict === 'steady');
  return growth.length > 0 && told ? 'passed' : 'too short';
}

/** Sums up the lines of one commit. */
export function summarise(
  lines: readonly SoakLine[], of: { readonly commit: string; readonly seed: number },
): SoakSummary {
  const outcomes: Record<string, number> = {};
  for (const { outcome } of lines) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  const growth = growthOf(lines.flatMap(({ readings }) => readings));
  const wholeMs = lines.reduce((sum, line) => sum + line.wholeMs, 0);
  return {
    kind: 'summary', ...of, sittings: new Set(lines.map(({ sitting }) => sitting)).size,
    minutes: Math.round(wholeMs / 6_000) / 10, moves: lines.length,
    faults: lines.filter(({ fault }) => fault !== null).length, outcomes,
    lostWrites: lines.reduce((sum, { lostWrites }) => sum + (lostWrites ?? 0), 0),
    runningCopiesMax: Math.max(0, ...lines.map((line) => line.runningCopiesMax)),
    violations: lines.flatMap(({ fault, violations }) =>
      violations.map((what) => `${fault ?? 'nothing was done'}: ${what}`)),
    grows: growth.filter(({ verdict }) => verdict === 'grows').map(nameOf),
    growth, verdict: verdictOf(lines, growth),
  };
}
