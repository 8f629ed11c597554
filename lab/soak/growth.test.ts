import { describe, expect, it } from 'vitest';
import { randomOf } from '../faults/cells.ts';
import { boundFor, growthOf } from './growth.ts';
import type { Measure, Reading } from './growth.ts';

const mib = 1024 * 1024;
const seed = Date.now() % 2 ** 32;

function readings(
  valueAt: (move: number) => number,
  { what = 'memoryBytes', count = 60, lifeOf = () => '1' }: {
    readonly what?: Measure; readonly count?: number; readonly lifeOf?: (move: number) => string;
  } = {},
): Reading[] {
  return Array.from({ length: count }, (_, move) => ({
    who: 'control', what, life: lifeOf(move), moves: move, value: valueAt(move),
  }));
}
const verdictOf = (of: readonly Reading[]): string | undefined => growthOf(of)[0]?.verdict;

describe(`growth (seed ${seed})`, () => {
  const random = randomOf(seed);
  it('is not seen in what fills up first and then comes and goes', () => {
    const sawtooth = (move: number): number =>
      100 * mib + Math.min(move, 20) * 4 * mib + (move % 7) * 3 * mib + random() * 2 * mib;
    expect(verdictOf(readings(sawtooth))).toBe('steady');
  });
  it('is seen below the same coming and going', () => {
    const leak = (move: number): number =>
      100 * mib + move * mib + (move % 7) * 3 * mib + random() * 2 * mib;
    const [growth] = growthOf(readings(leak));
    expect(growth).toMatchObject({ verdict: 'grows' });
    expect(growth?.perMove).toBeGreaterThan(0.5 * mib);
    expect(growth?.perMove).toBeLessThan(1.5 * mib);
  });
  it('is seen in a descriptor a move, and not in five that stay', () => {
    expect(verdictOf(readings((move) => 30 + move, { what: 'descriptors' }))).toBe('grows');
    expect(verdictOf(readings((move) => (move < 10 ? 30 : 35), { what: 'descriptors' })))
      .toBe('steady');
  });
  it('is seen in lives that each end before they are large', () => {
    const leak = (move: number): number => 50 * mib + (move % 30) * 2 * mib;
    const lifeOf = (move: number): string => String(Math.floor(move / 30));
    expect(verdictOf(readings(leak, { lifeOf }))).toBe('grows');
    const fresh = (move: number): number => (50 + Math.floor(move / 30) * 20) * mib;
    expect(verdictOf(readings(fresh, { lifeOf }))).toBe('steady');
  });
  it('is not judged from a few readings', () => {
    expect(verdictOf(readings((move) => move * 100 * mib, { count: 8 }))).toBe('too short');
    expect(verdictOf(readings((move) => move * 100 * mib, { lifeOf: String }))).toBe('too short');
  });
  it('is allowed to Temporal\'s server alone', () => {
    expect(boundFor('temporal/server', 'memoryBytes').perMove)
      .toBeGreaterThan(boundFor('control', 'memoryBytes').perMove);
    expect(boundFor('temporal/server', 'descriptors')).toEqual(boundFor('control', 'descriptors'));
  });
});
