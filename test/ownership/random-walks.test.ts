/** P1-P5 over random walks of the production ledger and modelled hosts. */
import { describe, expect, test } from 'vitest';
import { memoryStorage } from '../../runners/group/ledger-log/memory-storage.ts';
import { LedgerCore } from '../../runners/ledger/core.ts';
import { randomWalks } from './random-walk.ts';

const seed = Number(process.env['NOVACRON_SEED'] ?? Date.now() % 2_147_483_647);
const runs = Number(process.env['NOVACRON_RUNS'] ?? 100);

describe('random walks of ledger and hosts', () => {
  test(`P1-P5 hold (NOVACRON_SEED=${seed}, NOVACRON_RUNS=${runs})`, async () => {
    const accepted = await randomWalks({ LedgerCore, memoryStorage }, { seed, runs });
    // A walk that never gets anywhere would prove nothing.
    for (const kind of [
      'prepare', 'quiesced', 'ready', 'commit', 'abort', 'started', 'revert', 'settle', 'restart',
      'failover', 'declined',
    ]) expect(accepted.get(kind) ?? 0, kind).toBeGreaterThan(0);
  }, 300_000);
});
