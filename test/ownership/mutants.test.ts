/** Each seeded mistake must be caught, and by a check that the production code passes. */
import { describe, expect, test } from 'vitest';
import { decide } from '../../runners/group/ownership/decide.ts';
import { crashTrials } from './crash-trials.ts';
import type { LedgerParts } from './crash-trials.ts';
import { explore } from './explorer.ts';
import { decisionMutants, logMutants } from './mutants.ts';
import type { Mutant } from './mutants.ts';
import { mutated } from './mutate.ts';
import { randomWalks } from './random-walk.ts';
import { rules } from './rules.ts';
import type { Decide } from './rules.ts';

const bounds = {
  hosts: 2, epochMax: 3, writeMax: 1, moveMax: 2, crashMax: 1, postCopy: true, created: false,
  stateMax: 1_000_000,
};

/** Names of what catches a decision: rules first, then the explorer. */
function caughtBy(candidate: Decide, how: 'rules' | 'explorer'): readonly string[] {
  if (how === 'explorer') {
    try {
      const { violation } = explore(candidate, bounds);
      return violation === null ? [] : [violation];
    } catch (error) {
      return [`it fails outright: ${(error as Error).message.slice(0, 200)}`];
    }
  }
  return Object.entries(rules).flatMap(([name, check]) => {
    try {
      check(candidate);
      return [];
    } catch {
      return [name];
    }
  });
}

/**
 * Mistakes that break the protocol itself and so have to be found without knowing the table. Those
 * that only a host which breaks its own rules could use are left to the rules and the random walks.
 */
const explored = new Set([
  'a start does not check the epoch', 'settle with pages missing', 'commit without Ready',
  'a start is accepted without becoming an entry', 'revert after the start',
  'failover to a host without the disk', 'failover while the lease holds', 'a stale image may start',
  'a repeated restart raises the epoch again',
  'a repeated commit is refused', 'a repeated prepare begins anew', 'abort after the commit',
  'a start while preparing', 'a start does not move the disk holder',
  'a declined start stays recorded', 'a revert keeps the epoch', 'an ended migration opens again',
]);

/** Mistakes that break P1-P5 for hosts and messages as the walks have them. */
const walked = new Set([
  'revert after the start', 'failover to a host without the disk', 'abort after the commit',
  'a start while preparing', 'a start does not move the disk holder', 'an ended migration opens again',
]);

async function withMutant(mutant: Mutant, action: (decide: Decide) => void): Promise<void> {
  const copy = await mutated(mutant);
  try {
    action((await copy.load<{ decide: Decide }>('runners/group/ownership/decide.ts')).decide);
  } finally {
    await copy.close();
  }
}

describe('mutants of the decisions', () => {
  test('the production code passes what the mutants must fail', () => {
    expect(caughtBy(decide, 'rules')).toEqual([]);
    expect(caughtBy(decide, 'explorer')).toEqual([]);
  }, 180_000);

  for (const mutant of decisionMutants) {
    test(`rules catch: ${mutant.name}`, () => withMutant(mutant, (candidate) => {
      expect(caughtBy(candidate, 'rules'), 'the mutant survives the rules').not.toEqual([]);
    }));
  }
  for (const mutant of decisionMutants.filter(({ name }) => explored.has(name))) {
    test(`the explorer catches: ${mutant.name}`, () => withMutant(mutant, (candidate) => {
      expect(caughtBy(candidate, 'explorer'), 'the mutant survives').not.toEqual([]);
    }), 60_000);
  }
});

const seed = Number(process.env['NOVACRON_SEED'] ?? Date.now() % 1_000_000);

describe('mutants on random walks', () => {
  for (const mutant of decisionMutants.filter(({ name }) => walked.has(name))) {
    test(`walks catch: ${mutant.name} (NOVACRON_SEED=${seed})`, async () => {
      const copy = await mutated(mutant);
      try {
        const parts = await partsOf(copy.load);
        await expect(randomWalks(parts, { seed, runs: 300 })).rejects.toThrow('Property failed');
      } finally {
        await copy.close();
      }
    }, 300_000);
  }
});

describe('mutants of the log', () => {

  test(`the production code passes the crash trials (NOVACRON_SEED=${seed})`, async () => {
    const copy = await mutated({ ...(logMutants[0] as Mutant), replace: logMutants[0]?.find ?? '' });
    try {
      expect(await crashTrials(await partsOf(copy.load), seed)).toEqual([]);
    } finally {
      await copy.close();
    }
  }, 180_000);

  for (const mutant of logMutants) {
    test(`crash trials catch: ${mutant.name} (NOVACRON_SEED=${seed})`, async () => {
      const copy = await mutated(mutant);
      try {
        expect(await crashTrials(await partsOf(copy.load), seed), 'the mutant survives')
          .not.toEqual([]);
      } finally {
        await copy.close();
      }
    }, 180_000);
  }
});

async function partsOf(load: <T>(file: string) => Promise<T>): Promise<LedgerParts> {
  return {
    ...await load<Pick<LedgerParts, 'LedgerCore'>>('runners/ledger/core.ts'),
    ...await load<Pick<LedgerParts, 'memoryStorage'>>('runners/group/ledger-log/memory-storage.ts'),
  };
}
