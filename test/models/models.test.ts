/**
 * The models are right within their bounds, and each seeded mistake in them is found, by the very
 * invariant that it is there for: `npm run models`.
 */
import { readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { modelsFolder, tlc } from './tlc.ts';

/** Sound configurations, with at least so many states: bounds that shrink prove less. */
const sound = [
  { module: 'VmLedgerLocal', config: 'local2', statesMin: 1_000_000 },
  { module: 'VmLedgerLocal', config: 'local3', statesMin: 600_000 },
  { module: 'VmLedgerCreated', config: 'created2', statesMin: 700_000 },
  { module: 'VmLedger', config: 'good2', statesMin: 1_500_000 },
  { module: 'VmLedger', config: 's2', statesMin: 100_000 },
  { module: 'VmLedger', config: 's3', statesMin: 200_000 },
  { module: 'VmLedger', config: 'z2', statesMin: 1_000_000 },
] as const;

/** Configurations with a mistake, and what finds it. */
const mistaken = [
  { module: 'VmLedgerLocal', config: 'local_m_gate', finds: 'NoTimeTravel' },
  { module: 'VmLedgerLocal', config: 'local_m_cold', finds: 'NoTimeTravel' },
  { module: 'VmLedgerLocal', config: 'local_m_settle', finds: 'PcSafe' },
  { module: 'VmLedger', config: 'm1', finds: 'OneRunning' },
  { module: 'VmLedger', config: 'm2', finds: 'OneRunning' },
  { module: 'VmLedger', config: 'm3', finds: 'NoTimeTravel' },
  { module: 'VmLedger', config: 'm4', finds: 'OneRunning' },
  { module: 'VmLedger', config: 'm5', finds: 'TwoInWindow' },
] as const;

describe('models', () => {
  test('are all in one of these lists', () => {
    const known = [...sound, ...mistaken].map(({ config }) => `${config}.cfg`);
    expect(readdirSync(modelsFolder).filter((name) => name.endsWith('.cfg')).toSorted())
      .toEqual([...known, 'trace.cfg'].toSorted());
  });
  test.each(sound)('$config has no wrong state', async ({ module, config, statesMin }) => {
    const { violated, passed, distinctStates } = await tlc({ module, config });
    console.info(`${config}: ${distinctStates} states`);
    expect({ violated, passed }).toEqual({ violated: null, passed: true });
    expect(distinctStates).toBeGreaterThan(statesMin);
  });
  test.each(mistaken)('$config is found by $finds', async ({ module, config, finds }) => {
    const { violated, passed } = await tlc({ module, config });
    expect({ violated, passed }).toEqual({ violated: finds, passed: false });
  });
});
