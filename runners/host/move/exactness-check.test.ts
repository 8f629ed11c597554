import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import type { ExactnessReport } from '../../../contracts/exactness.ts';
import { CodedError } from '../../../contracts/failures.ts';
import { checkExactness } from './exactness-check.ts';
import type { ExactnessCheck } from './exactness-check.ts';

const compared = { pageCount: 100, wrongPageCount: 0, wallMs: 5, cpuMs: 4 };

/** A check whose steps are noted in order. */
function scene(facts: {
  readonly sourceWrong?: number; readonly wrong?: number; readonly written?: number;
  readonly mode?: ExactnessCheck['mode']; readonly hangs?: boolean; readonly pauseFails?: boolean;
  readonly sourceGone?: Promise<void>;
}): { readonly trace: string[]; readonly run: () => Promise<ExactnessReport> } {
  const trace: string[] = [];
  const { wrong = 0, written = 0, sourceWrong = wrong, mode = 'after-resume' } = facts;
  const step = async (name: string): Promise<void> => { trace.push(name); };
  return {
    trace,
    run: () => checkExactness({
      mode, epoch: 7, msMax: 30, goneMsMax: 5, sourceGone: facts.sourceGone ?? new Promise(() => undefined), log: pino({ level: 'silent' }),
      session: {
        beginCheck: () => { trace.push('begin'); },
        waitChecked: () => facts.hangs === true ? new Promise(() => undefined) : Promise.resolve({
          source: { ...compared, wrongPageCount: sourceWrong }, target: compared,
          writtenPageCount: 3, wrongPageCount: wrong,
        }),
        repair: async () => {
          await step('repair');
          return { repairedPageCount: wrong - written, writtenPageCount: written };
        },
        endCheck: () => step('end'),
      },
      vmm: {
        pause: async () => {
          await step('pause');
          if (facts.pauseFails === true) throw new CodedError('vmm/gone', 'it ended');
        },
        goOn: () => step('go-on'),
      },
      gates: { bindLease: (epoch) => step(`lease-${epoch}`) },
      noteDamage: (report) => step(`note-${report?.kind ?? 'none'}-${report?.damagedPageCount}`),
    }),
  };
}

describe('the check of an arrival', () => {
  test('an exact one is only watched', async () => {
    const { trace, run } = scene({});
    expect(await run()).toMatchObject({ kind: 'exact', detail: '', writtenPageCount: 3 });
    expect(trace).toEqual(['begin', 'end']);
  });

  test('what was sent again before the start is told', async () => {
    const { run } = scene({ sourceWrong: 2, mode: 'before-resume' });
    expect(await run()).toMatchObject({
      kind: 'exact', detail: '2 pages that tracking missed were sent again before the start' });
  });

  test('a repair is made while the VM stands, and damage is assumed until it is over', async () => {
    const { trace, run } = scene({ wrong: 2 });
    expect(await run()).toMatchObject({ kind: 'repaired', repairedPageCount: 2, damagedPageCount: 0 });
    expect(trace).toEqual([
      'begin', 'note-damaged-2', 'pause', 'repair', 'lease-7', 'go-on', 'note-none-undefined', 'end',
    ]);
  });

  test('a VM with a written wrong page never goes on by itself', async () => {
    const { trace, run } = scene({ wrong: 2, written: 1 });
    expect(await run()).toMatchObject({ kind: 'damaged', repairedPageCount: 1, damagedPageCount: 1 });
    expect(trace).toEqual([
      'begin', 'note-damaged-2', 'pause', 'repair', 'note-damaged-1', 'end',
    ]);
  });

  test('a check that does not end is unverified and says why', async () => {
    const hanging = scene({ hangs: true });
    expect(await hanging.run()).toMatchObject({
      kind: 'unverified', detail: 'the check did not end in 30 ms' });
    expect(hanging.trace).toEqual(['begin', 'end']);
    expect(await scene({ hangs: true, sourceGone: Promise.resolve() }).run()).toMatchObject({
      kind: 'unverified', detail: 'the source went away before it had compared' });
    expect(await scene({ sourceGone: Promise.resolve() }).run()).toMatchObject({ kind: 'exact' });
  });

  test('wrong pages that can not be repaired are damage', async () => {
    const { trace, run } = scene({ wrong: 1, pauseFails: true });
    expect(await run()).toMatchObject({ kind: 'damaged', damagedPageCount: 1 });
    expect(trace).toEqual(['begin', 'note-damaged-1', 'pause', 'end']);
  });

  test('off asks for nothing', async () => {
    const { trace, run } = scene({ mode: 'off' });
    expect(await run()).toMatchObject({ kind: 'off' });
    expect(trace).toEqual([]);
  });
});
