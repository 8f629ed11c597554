/** What operators are told of a move that will not end by itself: the table of cases. */
import { describe, expect, it } from 'vitest';
import { defaultPolicy } from '../contracts/migration.ts';
import type { MigrationPolicy, MigrationStatus, SessionProgress } from '../contracts/migration.ts';
import { explainMove } from './explain.ts';
import { adviceLines, outlookAdvice } from './outlook.ts';
import { nextView, progressLine } from './progress.ts';
import { ProgressDisplay } from './watch.ts';

const migration = 'migrate/db/r1';
const statusOf = (
  progress: Partial<SessionProgress>, policy: Partial<MigrationPolicy> = {},
): MigrationStatus => ({
  version: 1, phase: 'copy-memory', vm: 'db', source: 'h1', target: 'h2', engine: 'direct',
  percent: 30, pointOfNoReturnPassed: false, policy: { ...defaultPolicy, ...policy }, size: null,
  waitingFor: null, outcome: null,
  progress: {
    version: 1, phase: 'memory', paused: false, round: 4, bytesPlanned: 2_000, bytesDone: 1_000,
    bytesOnWire: 900, diskBytesTotal: 0, diskBytesDone: 0, dirtyBytesPerSecond: 30 * 1_048_576,
    sendBytesPerSecond: 10 * 1_048_576, etaMs: null, outlook: 'not-converging',
    estimatedDowntimeMs: 2_030, convergence: 'flat-above-budget', mirrorMode: 'none', ...progress,
  },
} as unknown as MigrationStatus);

describe('a move that will not end', () => {
  it('says so with both rates, and names commands that end it', () => {
    const advice = outlookAdvice({ migration, status: statusOf({}, {
      bandwidthBytesPerSecond: 10_000_000 }) });
    expect(advice?.reason).toMatch(
      /faster than the link carries it \(30 MiB\/s changed, 10 MiB\/s sent\).*post-copy never/);
    expect(advice?.remedies.map(({ command }) => command)).toEqual([
      'novacron migration set migrate/db/r1 --bandwidth none',
      'novacron migration set migrate/db/r1 --downtime-budget 2540ms',
      'novacron migration cancel migrate/db/r1 && novacron migrate db --to h2 '
        + '--post-copy when-needed',
    ]);
  });
  it('offers no budget that the command would refuse, no bandwidth where none is capped', () => {
    const advice = outlookAdvice({ migration, status: statusOf({ estimatedDowntimeMs: 90_000 }) });
    expect(advice?.remedies).toHaveLength(1);
    expect(outlookAdvice({ migration, status: statusOf({ estimatedDowntimeMs: null }) })?.remedies)
      .toHaveLength(1);
  });
  it.each(['unknown', 'ends', 'ends-by-post-copy', undefined] as const)(
    'is silent about a move that is %s', (outlook) => {
      const { progress, ...rest } = statusOf({});
      const { outlook: _none, ...without } = progress as SessionProgress;
      const status = { ...rest,
        progress: outlook === undefined ? without : { ...without, outlook } } as MigrationStatus;
      expect(outlookAdvice({ migration, status })).toBeNull();
    });
  it('is told of a deadline that will not be met', () => {
    const advice = outlookAdvice({ migration, status: statusOf({ outlook: 'past-deadline' }) });
    expect(adviceLines(advice ?? { reason: '', remedies: [] }).join('\n'))
      .toMatch(/deadline[^]*--deadline 24h/);
  });
  it('is in `why`, with the first remedy as the next command', () => {
    const view = { status: statusOf({}), check: null, attempt: 1, lastFailure: null };
    const said = explainMove({ migration, view, entry: null, end: null, silent: false });
    expect(said.because[0]).toMatch(/30 MiB\/s changed, 10 MiB\/s sent/);
    expect(said.nextCommand).toBe(
      'novacron migration set migrate/db/r1 --downtime-budget 2540ms');
  });
  it('is in the line of progress and told once while watched, not for one busy moment', () => {
    const line = progressLine(nextView(null, { status: statusOf({}), heartbeat: null }), null);
    expect(line).toContain('ETA: never under this policy');
    const written: string[] = [];
    const display = new ProgressDisplay(
      { write: (text: string) => { written.push(text); }, columns: null }, () => 0);
    const show = (outlook: SessionProgress['outlook'] & string): void => display.show(
      { status: statusOf({ outlook }), check: null, attempt: 1, lastFailure: null }, migration);
    const times = (): number =>
      written.filter((text) => text.includes('faster than the link')).length;
    show('not-converging');
    show('ends');
    for (let look = 0; look < 3; look += 1) show('not-converging');
    expect(times()).toBe(0);
    for (let look = 0; look < 5; look += 1) show('not-converging');
    expect(times()).toBe(1);
    expect(written.join('')).toContain('--post-copy when-needed');
  });
});
