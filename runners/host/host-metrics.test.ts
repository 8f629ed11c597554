/** Figures of a host: what is here now, and each move once. */
import { Registry } from 'prom-client';
import { expect, it, vi } from 'vitest';
import type { HostOperations } from '../../activities/host-operations.ts';
import { failureReport } from '../../contracts/failures.ts';
import type { SessionOutcome, TransferFigures } from '../../contracts/migration.ts';
import { countedMoves, registerHostMetrics } from './host-metrics.ts';

const handedOver = {
  kind: 'handed-over',
  figures: { downtimeMs: 34, totalMs: 1_721, bytesOnWire: 544_000_000 } as TransferFigures,
} as SessionOutcome;
const failed: SessionOutcome = {
  kind: 'failed', failure: failureReport('link/lost', 'cut'), resumed: true,
};

it('are what is here at each scrape', async () => {
  const registry = new Registry();
  let moves = 1;
  registerHostMetrics(registry, {
    livingVmCount: () => Promise.resolve(3), openMoveCount: () => moves,
  });
  expect(await registry.metrics()).toMatch(/^novacron_vms 3$/m);
  moves = 0;
  expect(await registry.metrics()).toMatch(/^novacron_moves_open 0$/m);
});

it('tell how moves ended, and the downtime of those that went over', async () => {
  const registry = new Registry();
  const note = registerHostMetrics(registry, {
    livingVmCount: () => Promise.resolve(0), openMoveCount: () => 0,
  });
  note(handedOver);
  note(failed);
  const text = await registry.metrics();
  expect(text).toContain('novacron_moves_away_total{outcome="handed-over",code=""} 1');
  expect(text).toContain('novacron_moves_away_total{outcome="failed",code="link/lost"} 1');
  expect(text).toContain('novacron_move_downtime_seconds_bucket{le="0.02"} 0');
  expect(text).toContain('novacron_move_downtime_seconds_bucket{le="0.05"} 1');
  expect(text).toMatch(/^novacron_move_seconds_sum 1\.721$/m);
  expect(text).toMatch(/^novacron_move_wire_bytes_total 544000000$/m);
});

it('count a move once, whoever asks again, and its next attempt', async () => {
  const note = vi.fn();
  const outcomes = [failed, failed, handedOver, handedOver];
  const operations = countedMoves({
    copyMemoryAndSwitchOver: () => Promise.resolve(outcomes.shift()),
    releaseSource: () => Promise.resolve(null),
  } as unknown as HostOperations, note);
  const copy = (session: string) => operations.copyMemoryAndSwitchOver({
    migration: 'migrate/db/r1', vm: 'db', endpoint: { session },
  } as Parameters<HostOperations['copyMemoryAndSwitchOver']>[0], {} as never);
  for (const session of ['a', 'a', 'b', 'b']) await copy(session);
  expect(note.mock.calls.map(([outcome]) => (outcome as SessionOutcome).kind))
    .toEqual(['failed', 'handed-over']);
});
