import { describe, expect, it } from 'vitest';
import { contradictionOf } from './recovery.ts';
import { cutRules } from './power.ts';
import { judge, seenAtOnce } from './verdict.ts';
import type { Evidence } from './verdict.ts';
import { portOfLine } from './watch.ts';

const seen = (text: string): { who: string; look: number }[] =>
  text.split('').flatMap((who, look) => (who === '.' ? [] : [{ who, look }]));

describe('seenAtOnce', () => {
  it.each([
    ['', 0], ['aaa', 1], ['aa.bb', 1], ['aabb', 1], ['aaba', 2], ['aba', 2], ['a.b.a', 2],
    ['abab', 2], ['abcba', 3], ['abcc', 1],
  ])('%s: %i', (text, most) => {
    expect(seenAtOnce(seen(text))).toBe(most);
  });
  it('takes an end and a beginning in one look for a change', () => {
    expect(seenAtOnce([
      { who: 'a', look: 0 }, { who: 'a', look: 1 }, { who: 'b', look: 1 }, { who: 'b', look: 2 },
    ])).toBe(1);
  });
});

describe('portOfLine', () => {
  const mac = '52:4e:43:00:03:0b';
  it.each([
    [`${mac} dev h1-v master br-vm `, 'h1-v'], ['02:4e:43:00:02:0b dev h1-v master br-vm', null],
    [`Deleted ${mac} dev h1-v master br-vm`, null], ['', null],
  ])('%s', (line, port) => {
    expect(portOfLine(line, mac)).toBe(port);
  });
});

const good: Evidence = {
  cell: { victim: 'ledger', phase: 'memory', fault: 'sigkill' }, reached: true, ended: true,
  onTarget: true, bootId: 'b', bootIdBefore: 'b', vcpuRunningMax: 1, effectiveMax: 1,
  selfCheckFailures: 0, counterWentBack: false, lostWrites: 0, orphans: [], contradiction: null,
  toldCompleted: false,
};

describe('judge', () => {
  it('finds nothing wrong with a good run', () => {
    expect(judge(good)).toEqual({ outcome: 'completed', guestVerified: true, violations: [] });
    expect(judge({ ...good, onTarget: false }).outcome).toBe('stayed');
  });
  it.each<[string, Partial<Evidence>, RegExp]>([
    ['two that ran', { vcpuRunningMax: 2 }, /2 copies ran/],
    ['a boot told as a move', {
      cell: { victim: 'target-vmm', phase: 'target/cont/after', fault: 'sigkill' }, bootId: 'c',
      toldCompleted: true }, /told as completed/],
    ['two that spoke', { effectiveMax: 2 }, /2 copies were effective/],
    ['lost writes', { lostWrites: 3 }, /3 acknowledged/],
    ['writes that nobody could read', { lostWrites: Number.NaN }, /could not be read back/],
    ['damaged pages', { selfCheckFailures: 1 }, /1 damaged/],
    ['a counter that went back', { counterWentBack: true }, /went back/],
    ['a move without end', { ended: false }, /does not end/],
    ['silence', { bootId: null }, /does not answer/],
    ['a needless boot', { bootId: 'c' }, /lost without need/],
    ['remains', { orphans: ['h1: its card'] }, /left behind: h1/],
    ['two tales', { contradiction: 'Temporal says a, the ledger says b' }, /Temporal says/],
  ])('tells %s', (_name, change, wanted) => {
    const { violations } = judge({ ...good, ...change });
    expect(violations).toHaveLength(1);
    expect(violations[0]).toMatch(wanted);
  });
  it('takes a boot for right where the only image is gone', () => {
    const cell = { victim: 'source-vmm', phase: 'memory', fault: 'sigkill' } as const;
    expect(judge({ ...good, cell, bootId: 'c' }))
      .toMatchObject({ outcome: 'booted-anew', violations: [] });
  });
});

describe('contradictionOf', () => {
  const outcome = { version: 1, kind: 'failed', runsOn: 'h1' } as unknown as
    Parameters<typeof contradictionOf>[0];
  it('compares Temporal with the ledger', () => {
    expect(contradictionOf(outcome, 'h1')).toBeNull();
    expect(contradictionOf(outcome, 'h2')).toMatch(/on h1; the ledger says h2/);
    expect(contradictionOf(null, 'h2')).toBeNull();
  });
});

describe('cutRules', () => {
  it('swallow one link of one host', () => {
    expect(cutRules({ number: 2 }, 'data')).toContain('iifname "h2-g" drop');
    expect(cutRules({ number: 1 }, 'ledger')).toContain('iifname "h1-m" tcp dport 7300 drop');
    expect(cutRules({ number: 1 }, 'temporal')).not.toContain('7300');
  });
});
