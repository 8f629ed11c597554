/**
 * Whether a run over the emulated link can be believed. The emulator shares the machine with both
 * ends: when it gets its core too late, packets leave late, and the run has measured a slower link
 * than it was asked for. Decides on its counters only, for every engine alike. Pure.
 */
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { formatBytes } from '../../contracts/units.ts';

/** Above this the emulator itself can't keep up on two cores: 500 Mbit/s. Bytes per second. */
export const wanRateMax = 62_500_000;
/** Packets that left more than 1 ms late, of all. Chosen, not yet calibrated on a quiet machine. */
export const lateShareMax = 0.01;
/** Mean lateness of a packet; the emulator's own batches are 0.25 ms apart. */
export const lateMsMeanMax = 0.5;
/** Fewer packets than this say nothing about lateness. */
const segmentsMin = 100;

const direction = z.looseObject({
  segmentsOut: z.number(), segmentsLost: z.number(), segmentsDropped: z.number(),
  malformed: z.number(), writeErrors: z.number(), lateUsSum: z.number(), lateOver1Ms: z.number(),
});
/** One line of the emulator's counters since its start. */
export const wanCounters = z.looseObject({ ab: direction, ba: direction });
export type WanCounters = z.infer<typeof wanCounters>;

/** What the emulator did between two looks. */
export interface LinkUse {
  readonly segments: number;
  readonly lost: number;
  /** Dropped because the queue of one bandwidth-delay product was full, as on a real link. */
  readonly dropped: number;
  readonly lateShare: number;
  readonly lateMsMean: number;
  readonly faults: number;
}

/** The difference of two looks, both directions together. */
export function linkUse(before: WanCounters, after: WanCounters): LinkUse {
  const grown = (name: keyof WanCounters['ab']): number =>
    (['ab', 'ba'] as const).reduce(
      (sum, way) => sum + Number(after[way][name]) - Number(before[way][name]), 0);
  const segments = grown('segmentsOut');
  const of = (sum: number): number => (segments === 0 ? 0 : sum / segments);
  return {
    segments, lost: grown('segmentsLost'), dropped: grown('segmentsDropped'),
    lateShare: of(grown('lateOver1Ms')), lateMsMean: of(grown('lateUsSum') / 1000),
    faults: grown('malformed') + grown('writeErrors'),
  };
}

/** Why a run on this link does not count; null when it does. */
export function linkDistrust(use: LinkUse): string | null {
  const percent = (value: number): string => `${(value * 100).toFixed(1)} %`;
  if (use.faults > 0) return `the link emulator lost ${use.faults} packets of its own`;
  if (use.segments < segmentsMin) return null;
  if (use.lateShare > lateShareMax) {
    return `the link emulator could not keep up: ${percent(use.lateShare)} of ${use.segments} `
      + `packets left over 1 ms late (at most ${percent(lateShareMax)})`;
  }
  if (use.lateMsMean > lateMsMeanMax) {
    return `the link emulator could not keep up: packets left ${use.lateMsMean.toFixed(2)} ms late `
      + `on average (at most ${lateMsMeanMax} ms)`;
  }
  return null;
}

/** Failure input/invalid when delay or loss is asked for at a rate that can't be emulated. */
export function requireHonestRate(rateBytesPerSecond: number | null): void {
  if (rateBytesPerSecond !== null && rateBytesPerSecond <= wanRateMax) return;
  const asked = rateBytesPerSecond === null
    ? 'no --rate was given' : `--rate was ${formatBytes(rateBytesPerSecond)}/s`;
  throw new CodedError('input/invalid',
    'delay and loss are emulated packet by packet, which is honest to 500 Mbit/s on this machine: '
    + `with --rtt or --loss say --rate 62.5MB/s or less (${asked})`);
}
