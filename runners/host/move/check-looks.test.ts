import { describe, expect, test } from 'vitest';
import { CheckLooks } from './check-looks.ts';

describe('looks at a check', () => {
  test('say nothing before it begins, and no time before there is a rate', () => {
    const looks = new CheckLooks();
    expect(looks.next({ nowMs: 0, done: 0, total: 1_000 })).toBeNull();
    expect(looks.next({ nowMs: 500, done: 256, total: 1_000 }))
      .toEqual({ version: 1, pagesDone: 256, pagesTotal: 1_000, etaMs: null });
    expect(looks.next({ nowMs: 500, done: 256, total: 1_000 })?.etaMs).toBeNull();
  });

  test('count on with the rate since the first, and end at all pages', () => {
    const looks = new CheckLooks();
    looks.next({ nowMs: 1_000, done: 100, total: 1_000 });
    expect(looks.next({ nowMs: 2_000, done: 400, total: 1_000 })?.etaMs).toBe(2_000);
    expect(looks.next({ nowMs: 3_000, done: 700, total: 1_000 })?.etaMs).toBe(1_000);
    expect(looks.next({ nowMs: 4_000, done: 1_024, total: 1_000 }))
      .toEqual({ version: 1, pagesDone: 1_000, pagesTotal: 1_000, etaMs: 0 });
  });
});
