/**
 * How a move shows that memory arrived exactly: the words of the request and of the answer. What
 * was sent and what was received is compared always, before the target may be Ready.
 */
import { z } from 'zod';

/**
 * When the images themselves are compared with what was sent and received of them, which finds what
 * dirty tracking missed: in the blackout, beside the running target, or never.
 */
export const exactnessModes = ['before-resume', 'after-resume', 'off'] as const;
export type ExactnessMode = (typeof exactnessModes)[number];
/** Costs no blackout, and what it finds can still be repaired. */
export const defaultExactness: ExactnessMode = 'after-resume';

const comparison = z.strictObject({
  pageCount: z.number(),
  wrongPageCount: z.number(),
  wallMs: z.number(),
  /** Of all threads together. */
  cpuMs: z.number(),
});
/** One image compared with what went over of it. */
export type ImageComparison = z.infer<typeof comparison>;

/**
 * What the check came to. `repaired`: wrong pages that the guest had not written were put right,
 * while it stood for a moment. `unverified`: the check could not end, `detail` says why.
 * `damaged`: the guest had written a wrong page; it stands, and both images are kept.
 */
export const exactnessReport = z.strictObject({
  kind: z.enum(['exact', 'repaired', 'unverified', 'damaged', 'off']),
  detail: z.string(),
  wrongPageCount: z.number(),
  repairedPageCount: z.number(),
  /** Wrong pages that the guest had written. */
  damagedPageCount: z.number(),
  /** Pages of the target that the guest had written before they could be compared. */
  writtenPageCount: z.number(),
  /** Null where it did not end. */
  source: comparison.nullable(),
  target: comparison.nullable(),
});
export type ExactnessReport = z.infer<typeof exactnessReport>;

/** How far the comparison at the target is: its heartbeats' detail, newer than any report. */
export interface CheckProgress {
  readonly version: 1;
  readonly pagesDone: number;
  readonly pagesTotal: number;
  /** Until all are compared; null before there is a rate. */
  readonly etaMs: number | null;
}

/** A report of a check that has nothing to say of pages. */
export const plainReport = (
  kind: 'unverified' | 'off' | 'exact', detail: string,
): ExactnessReport => ({
  kind, detail, wrongPageCount: 0, repairedPageCount: 0, damagedPageCount: 0, writtenPageCount: 0,
  source: null, target: null,
});

/** What an operator makes of a damaged VM: it goes on as it is, or boots cold from its disk. */
export type DamageChoice = 'accept' | 'cold';
