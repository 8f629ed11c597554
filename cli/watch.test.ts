/** How a watched move is drawn, and what ends the watching. */
import { describe, expect, it } from 'vitest';
import { defaultPolicy } from '../contracts/migration.ts';
import type { MigrationOutcome, MigrationPhase, MigrationStatus } from '../contracts/migration.ts';
import type { MigrationId } from '../contracts/identity.ts';
import type { Workflows } from './backend.ts';
import { ProgressDisplay, watchMove } from './watch.ts';

const statusOf = (phase: MigrationPhase, percent: number) => ({ version: 1, phase, vm: 'db',
  source: 'h1', target: 'h2', engine: 'direct', percent, pointOfNoReturnPassed: false,
  policy: defaultPolicy, progress: null, waitingFor: null,
    outcome: null }) as unknown as MigrationStatus;
const look = (phase: MigrationPhase, percent: number) =>
  ({ status: statusOf(phase, percent), check: null, attempt: 1, lastFailure: null });

function drawn(columns: number | null, looks: readonly [number, MigrationPhase, number][]): string {
  let text = '';
  let nowMs = 0;
  const display = new ProgressDisplay(
    { write: (part) => { text += part; }, columns }, () => nowMs);
  for (const [atMs, phase, percent] of looks) {
    nowMs = atMs;
    display.show(look(phase, percent), 'migrate/db/r1');
  }
  display.end();
  return text;
}

describe('ProgressDisplay', () => {
  it('redraws one line on a terminal and leaves it clean', () => {
    const text = drawn(80, [[0, 'preflight', 0], [500, 'copy-memory', 20]]);
    expect(text.split('\n').length).toBe(1);
    expect(text.match(/\r\u001b\[2K/g)?.length).toBe(3);
  });
  it('prints a line per phase and one each five seconds elsewhere', () => {
    const text = drawn(null, [[0, 'preflight', 0], [500, 'copy-memory', 10], [1_000, 'copy-memory',
      20],
      [4_000, 'copy-memory', 30], [5_600, 'copy-memory', 40], [5_700, 'verify', 96]]);
    expect(text.trim().split('\n').map((line) => /([\d.]+) %/.exec(line)?.[1]))
      .toEqual(['0.0', '10.0', '40.0', '96.0']);
    expect(text).not.toContain('\u001b');
  });
});

describe('watchMove', () => {
  const away = Object.assign(new Error('14 UNAVAILABLE'), { code: 14 });
  const watch = (workflows: Partial<Workflows>) => {
    let nowMs = 0;
    return watchMove({ workflows: workflows as Workflows, migration: 'migrate/db/r1' as MigrationId,
      sink: { write: () => {}, columns: null },
      clock: { now: () => nowMs, sleep: async (ms) => { nowMs += ms; } } });
  };
  const outcome = { kind: 'completed' } as MigrationOutcome;

  it('waits out a restart of Temporal', async () => {
    let asked = 0;
    expect(await watch({
      viewMove: async () => { throw away; },
      outcomeOf: async () => {
        asked += 1;
        if (asked < 20) throw away;
        return outcome;
      },
    })).toBe(outcome);
  });
  it('gives up after two minutes of silence and says that the move goes on', async () => {
    await expect(watch({ viewMove: async () => { throw away; },
      outcomeOf: async () => { throw away; } }))
      .rejects.toMatchObject({ code: 'temporal/unreachable', detail: /the move itself goes on/ });
  });
  it('ends at once when nobody knows the move', async () => {
    const unknown = Object.assign(new Error('no'), { name: 'WorkflowNotFoundError' });
    await expect(watch({ viewMove: async () => { throw unknown; },
      outcomeOf: () => new Promise(() => {}) })).rejects.toBe(unknown);
  });
});
