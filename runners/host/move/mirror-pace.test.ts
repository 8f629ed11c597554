import { expect, test } from 'vitest';
import { freshPace, judgePace } from './mirror-pace.ts';

const follow = (left: readonly number[], stepMs: number): boolean => {
  let pace = freshPace(0);
  return left.some((bytesLeft, index) => {
    const judged = judgePace(pace, { bytesLeft, nowMs: index * stepMs });
    pace = judged.pace;
    return judged.outrun;
  });
};

test('a shrinking rest is never outrun, however slowly it shrinks per look', () => {
  const shrinking = Array.from({ length: 100 }, (_, index) => 1e9 * 0.985 ** index);
  expect(follow(shrinking, 500)).toBe(false);
});

test('a rest that stands or grows is outrun after the patience, not before', () => {
  expect(follow([1e9, 1e9, 1.1e9, 1e9], 1000)).toBe(false);
  expect(follow([1e9, 1e9, 1.1e9, 1e9, 1.2e9], 1000)).toBe(true);
});

test('a mirror in sync is not outrun', () => {
  expect(follow([1e6, 0, 0, 0, 0, 0, 0], 1000)).toBe(false);
});
