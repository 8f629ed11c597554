/**
 * What ledgers have really recorded is a behaviour of VmLedgerLocal: TLC finds what the hosts must
 * have done between the entries. Walks print their seed; NOVACRON_LEDGER names the state directory
 * of another ledger (of a lab, of a campaign) whose log is checked as well.
 */
import { existsSync } from 'node:fs';
import { beforeAll, describe, expect, test } from 'vitest';
import { directoryStorage } from '../../runners/group/ledger-log/log-storage.ts';
import { memoryStorage } from '../../runners/group/ledger-log/memory-storage.ts';
import { LedgerCore } from '../../runners/ledger/core.ts';
import { randomWalks } from '../ownership/random-walk.ts';
import { explain, tracesOf } from './traces.ts';
import type { Trace, TraceLine } from './traces.ts';

const seed = Number(process.env['NOVACRON_SEED'] ?? Date.now() % 2_147_483_647);
const runs = Number(process.env['NOVACRON_RUNS'] ?? 20);
const directory = process.env['NOVACRON_LEDGER'];

/** A log without checkpoints, so that it begins with the creation of its VMs. */
const segmentBytesMax = 1 << 30;

const explainsAll = async (traces: readonly Trace[]): Promise<void> => {
  const explained = await explain(traces.map(({ lines }) => lines));
  const refused = traces.flatMap(({ vm, lines }, index) => {
    const count = explained[index] ?? 0;
    return count === lines.length ? []
      : [{ vm, after: lines.slice(Math.max(0, count - 3), count), refused: lines[count] }];
  });
  expect(refused).toEqual([]);
};

/** A wrong entry at `at`; null where the trace can't have it there. */
interface Mistake {
  readonly name: string;
  readonly make: (lines: readonly TraceLine[], at: number) => readonly TraceLine[] | null;
}
const changed = (
  kind: TraceLine['kind'], change: (line: TraceLine, before: TraceLine) => Partial<TraceLine> | null,
): Mistake['make'] => (lines, at) => {
  const [before, line] = [lines[at - 1], lines[at]];
  if (before === undefined || line?.kind !== kind) return null;
  const wrong = change(line, before);
  return wrong === null ? null : [...lines.slice(0, at), { ...line, ...wrong }];
};
const other = ({ own }: TraceLine): 'a' | 'b' => (own === 'a' ? 'b' : 'a');

const mistakes: readonly Mistake[] = [
  { name: 'a commit without Ready', make: (lines, at) => (lines[at]?.kind === 'ready'
    && lines[at + 1]?.kind === 'commit' ? [...lines.slice(0, at), lines[at + 1] as TraceLine]
    : null) },
  { name: 'a commit that raises the epoch twice', make: changed('commit', ({ ep }) =>
    ({ ep: ep + 1 })) },
  { name: 'a commit to somebody else', make: changed('commit', (_line, before) =>
    ({ own: before.own })) },
  { name: 'a settle before the start', make: (lines, at) => {
    const [before, line] = [lines[at - 1], lines[at]];
    return before?.kind === 'commit' && line?.kind === 'started'
      ? [...lines.slice(0, at), { ...before, kind: 'settle', st: 'Owned' }] : null;
  } },
  { name: 'a start that leaves the disk behind', make: changed('started', (_line, before) =>
    (before.st === 'Unsettled' ? { hold: before.hold } : null)) },
  { name: 'a start that stays unwritten', make: changed('settle', (_line, before) =>
    ({ started: before.lastst })) },
  { name: 'a revert after the start', make: (lines, at) => {
    const line = lines[at];
    return line?.kind === 'started' && line.st === 'Unsettled' ? [...lines.slice(0, at + 1), {
      ...line, kind: 'revert', st: 'Owned', own: line.prev, ep: line.ep + 1 }] : null;
  } },
  { name: 'a failover to a host without the disk', make: changed('failover', (line) =>
    ({ own: other({ ...line, own: line.hold }) })) },
  { name: 'a restart without a new epoch', make: changed('restart', (_line, { ep }) => ({ ep })) },
  { name: 'an abort after the commit', make: changed('started', (_line, before) =>
    (before.st === 'Unsettled' ? { ...before, kind: 'abort', st: 'Owned' } : null)) },
  { name: 'a second move at once', make: changed('ready', (line, before) =>
    ({ ...before, kind: 'prepare', dst: other({ ...line, own: line.dst }) })) },
];

describe(`traces of ledgers (NOVACRON_SEED=${seed}, NOVACRON_RUNS=${runs})`, () => {
  const walked: Trace[] = [];
  beforeAll(async () => {
    await randomWalks({ LedgerCore, memoryStorage }, {
      seed, runs, segmentBytesMax,
      onLog: async (storage) => void walked.push(...await tracesOf(storage)),
    });
  });

  test('random walks are explained by the specification', async () => {
    const kinds = new Set(walked.flatMap(({ lines }) => lines.map(({ kind }) => kind)));
    for (const kind of ['prepare', 'ready', 'commit', 'abort', 'started', 'settle', 'revert',
      'declined', 'failover', 'restart'] as const) expect(kinds).toContain(kind);
    const lineCount = walked.reduce((sum, { lines }) => sum + lines.length, 0);
    console.info(`${walked.length} traces, ${lineCount} lines, the longest of `
      + `${Math.max(...walked.map(({ lines }) => lines.length))}`);
    await explainsAll(walked);
  });

  test('each seeded mistake is refused where it is', async () => {
    const made = mistakes.map(({ name, make }) => {
      for (const { lines } of walked) {
        for (let at = 1; at < lines.length; at += 1) {
          const wrong = make(lines, at);
          if (wrong !== null) return { name, wrong };
        }
      }
      throw new Error(`no walk has a place for ${name}; choose another seed or more runs`);
    });
    const explained = await explain(made.map(({ wrong }) => wrong));
    // The line before it is still explained: it is the mistake that is refused.
    expect(made.map(({ name }, index) => ({ name, explained: explained[index] })))
      .toEqual(made.map(({ name, wrong }) => ({ name, explained: wrong.length - 1 })));
  });

  const named = directory ?? 'the ledger that NOVACRON_LEDGER names';
  test.runIf(directory !== undefined)(`the log of ${named} is explained`, async () => {
    if (directory === undefined || !existsSync(directory)) throw new Error(`no ${directory}`);
    const traces = await tracesOf(await directoryStorage(directory));
    console.info(`${traces.length} VMs, ${traces.reduce((sum, { lines }) => sum + lines.length, 0)}`
      + ' lines');
    expect(traces.length).toBeGreaterThan(0);
    await explainsAll(traces);
  });
});
