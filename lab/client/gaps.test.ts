import { describe, expect, it } from 'vitest';
import { GapMeter, quantile } from './gaps.ts';

describe('GapMeter', () => {
  it('keeps the longest time between two answers', () => {
    const meter = new GapMeter();
    for (const at of [0, 2, 4, 60, 62]) meter.tick(at);
    expect(meter.report(62)).toMatchObject({ answers: 5, gapMsMax: 56, gapMsMedian: 2 });
  });
  it('counts a gap that was open at the mark with its full length', () => {
    const meter = new GapMeter();
    meter.tick(0);
    meter.mark();
    meter.tick(40);
    expect(meter.report(41).gapMsMax).toBe(40);
  });
  it('counts the silence of a guest that never answers again', () => {
    const meter = new GapMeter();
    meter.tick(10);
    expect(meter.report(510).gapMsMax).toBe(500);
  });
});

describe('quantile', () => {
  it('takes the nearest rank', () => {
    const figures = Array.from({ length: 100 }, (_, index) => 100 - index);
    expect(quantile(figures, 0.99)).toBe(99);
    expect(quantile(figures, 0.5)).toBe(50);
    expect(quantile([7], 0.99)).toBe(7);
    expect(quantile([], 0.5)).toBe(0);
  });
});
