import { describe, expect, it } from 'vitest';
import { linkDistrust, linkUse, requireHonestRate, wanCounters } from './wan-trust.ts';
import type { LinkUse } from './wan-trust.ts';

/** A line as native/wan prints it. */
const counters = (change: Record<string, number>) => {
  const zero = {
    buffersIn: 0, segmentsIn: 0, bytesIn: 0, buffersOut: 0, segmentsOut: 0, bytesOut: 0,
    segmentsLost: 0, segmentsDropped: 0, segmentsReordered: 0, malformed: 0, writeErrors: 0,
    queueBytesMax: 0, lateUsMax: 0, lateUsSum: 0, lateOver1Ms: 0,
  };
  return wanCounters.parse({
    ab: { ...zero, ...change }, ba: zero, segmentsInside: 0, cpuUserMs: 1, cpuSystemMs: 1,
  });
};
const use = (change: Partial<LinkUse>): LinkUse => ({
  segments: 10_000, lost: 0, dropped: 0, lateShare: 0, lateMsMean: 0.1, faults: 0, ...change,
});

describe('linkUse', () => {
  it('is what was added between two looks, not since the start', () => {
    const before = counters({ segmentsOut: 1_000, lateOver1Ms: 900, lateUsSum: 5_000_000 });
    const after = counters({
      segmentsOut: 3_000, lateOver1Ms: 910, lateUsSum: 5_400_000, segmentsLost: 3 });
    expect(linkUse(before, after)).toEqual({
      segments: 2_000, lost: 3, dropped: 0, lateShare: 0.005, lateMsMean: 0.2, faults: 0 });
  });
  it('divides by nothing when nothing was carried', () => {
    expect(linkUse(counters({}), counters({}))).toMatchObject({ lateShare: 0, lateMsMean: 0 });
  });
});

describe('linkDistrust', () => {
  it('believes a link that kept up, also when it lost and dropped what it was told to', () => {
    expect(linkDistrust(use({ lateShare: 0.01, lateMsMean: 0.5, lost: 90, dropped: 700 })))
      .toBeNull();
  });
  it.each([
    ['3.2 %', use({ lateShare: 0.032 })],
    ['0.80 ms', use({ lateMsMean: 0.8 })],
    ['of its own', use({ faults: 1 })],
  ])('names why not: %s', (words, seen) => {
    expect(linkDistrust(seen)).toContain(words);
  });
  it('says nothing about a handful of packets', () => {
    expect(linkDistrust(use({ segments: 12, lateShare: 0.5 }))).toBeNull();
  });
});

describe('requireHonestRate', () => {
  it('takes 500 Mbit/s and less', () => {
    expect(() => requireHonestRate(62_500_000)).not.toThrow();
  });
  it.each([null, 62_500_001, 125_000_000])('refuses %s and says what to type', (asked) => {
    expect(() => requireHonestRate(asked)).toThrow(expect.objectContaining({
      code: 'input/invalid', message: expect.stringContaining('--rate 62.5MB/s') }));
  });
});
