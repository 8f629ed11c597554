/** Sums up the engine's parts beside the prototype's figures and beside memcpy. Pure. */
import { z } from 'zod';
import { quantile } from '../client/gaps.ts';

/** One measurement of one part; `bytes` is null where the figure is the time. */
export const partSample = z.strictObject({
  part: z.string(), run: z.int(), ms: z.number(), bytes: z.int().nullable(),
});
export type PartSample = z.infer<typeof partSample>;

/**
 * What the prototype of this engine came to on a machine of the same kind, quiet: 1 GiB of shared
 * memory in 4 KiB pages, copies by pread and pwrite on one host without socket, TLS or digest.
 * Scans: of 0, of 10 to 1000, of 9,812 and of all pages dirty, in ms; copies in GB/s.
 */
export const prototypeFigures: Readonly<Record<string, readonly [low: number, high: number]>> = {
  'scan-clean': [0.37, 0.43],
  'scan-500': [0.33, 0.59],
  'scan-5-percent': [1.05, 1.05],
  'scan-all': [9.0, 9.0],
  'pread-pwrite': [2.1, 2.3],
};

export interface PartSummary {
  readonly part: string;
  readonly runs: number;
  /** ms for scans and last passes, GB/s (10^9) where bytes were moved. */
  readonly unit: 'ms' | 'GB/s';
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** Range of the prototype, same unit; null where it had no such part. */
  readonly prototype: readonly [number, number] | null;
  /** Of memcpy's median in the same series; null for times. */
  readonly ofMemcpy: number | null;
}

const rounded = (value: number): number => Number(value.toPrecision(4));

function figures(samples: readonly PartSample[]): Omit<PartSummary, 'prototype' | 'ofMemcpy'> {
  const [first] = samples;
  const isTime = first?.bytes === null;
  const values = samples.map(({ ms, bytes }) => (bytes === null ? ms : bytes / ms / 1e6));
  return {
    part: first?.part ?? '', runs: samples.length, unit: isTime ? 'ms' : 'GB/s',
    median: rounded(quantile(values, 0.5)), min: rounded(Math.min(...values)),
    max: rounded(Math.max(...values)),
  };
}

/** Medians in the order in which the parts first came. */
export function summariseParts(samples: readonly PartSample[]): PartSummary[] {
  const byPart = Map.groupBy(samples, ({ part }) => part);
  const memcpy = figures(byPart.get('memcpy') ?? []);
  return [...byPart.values()].map((group) => {
    const own = figures(group);
    const comparable = own.unit === 'GB/s' && memcpy.runs > 0;
    return {
      ...own,
      prototype: prototypeFigures[own.part] ?? null,
      ofMemcpy: comparable ? Number((own.median / memcpy.median).toFixed(3)) : null,
    };
  });
}

/** A table for people. */
export function tellParts(parts: readonly PartSummary[]): string {
  const cell = (value: number | null): string =>
    (value === null ? '-' : String(Number(value.toPrecision(3)))).padStart(7);
  const lines = parts.map(({ part, unit, median, min, max, prototype, ofMemcpy }) => [
    part.padEnd(24), unit.padEnd(4), cell(median), cell(min), cell(max), cell(ofMemcpy),
    (prototype === null ? '-' : [...new Set(prototype)].join('-')).padStart(10),
  ].join(' '));
  return [
    `${'part'.padEnd(24)} unit  median     min     max  of memcpy  prototype`, ...lines,
  ].join('\n');
}
