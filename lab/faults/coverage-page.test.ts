import { describe, expect, it } from 'vitest';
import { coveragePage } from './coverage-page.ts';
import type { ResultLine } from './results.ts';

const line = {
  kind: 'run', commit: 'abc', seed: 1, phase: 'memory', victim: 'ledger', fault: 'sigkill',
  outcome: 'completed', violations: [], guestVerified: true, vcpuRunningMax: 1, effectiveMax: 1,
  runningCopiesMax: 1, lostWrites: 0, recoveredMs: 500, endedMs: 900, bytesSentAgain: 1_500_000,
  bytesSent: 2, told: 'completed', wholeMs: 9,
} as unknown as ResultLine;
const bad = { ...line, outcome: 'stuck', violations: ['the move does not end'], recoveredMs: null };
const pageOf = (...lines: readonly object[]): string =>
  coveragePage(lines.map((one) => `${JSON.stringify(one)}\n`).join(''));
const sectionOf = (page: string, title: string): string =>
  page.split('\n## ').find((text) => text.startsWith(title)) ?? '';

describe('the page of coverage', () => {
  it('counts runs and goals', () => {
    const page = pageOf(line, { ...line, fault: 'late', victim: 'ledger' },
      { ...line, outcome: 'not-reached' }, { ...line, phase: '-', victim: '-', fault: '-' });
    expect(page).toContain('2 runs with a fault on 1 commits, 2 cells; 2 completed.');
    expect(page).toContain('1 runs in which the phase was not reached');
    expect(page).toMatch(/\| victim, fault \| 2 \| \d+ \| \d+ \|/);
    expect(page).toContain('| sigkill | 1, 1 | 1 completed | 0.5 s, 0.5 s | 1.5 MB, 1.5 MB |');
  });
  it('tells what went wrong last from what was mended', () => {
    const open = pageOf(line, bad);
    expect(sectionOf(open, 'What must not')).toContain('ledger sigkill at memory (abc)');
    expect(sectionOf(open, 'What did happen')).toContain('None.');
    const mended = pageOf(bad, { ...line, commit: 'def' });
    expect(sectionOf(mended, 'What must not')).toContain('None.');
    expect(sectionOf(mended, 'What did happen')).toContain('(abc): the move does not end');
  });
});
