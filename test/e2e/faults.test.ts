/**
 * A short part of the fault campaign (`npm run faults`): processes killed at exact moments of the
 * hand-over, judged from outside. The campaign itself has to be able to find something, too.
 */
import { expect, it } from 'vitest';
import { runCampaign } from '../../lab/faults/campaign.ts';
import { nameOfCell } from '../../lab/faults/cells.ts';
import type { Cell } from '../../lab/faults/cells.ts';
import type { RunRecord } from '../../lab/faults/run.ts';
import { describeInLab } from '../support/lab-needs.ts';

const cells: readonly Cell[] = [
  { victim: 'source-runner', phase: 'target/commit/after', fault: 'sigkill' },
  { victim: 'target-vmm', phase: 'target/commit/before', fault: 'sigkill' },
  { victim: 'ledger', phase: 'target/started/before', fault: 'sigkill' },
];

describeInLab('kill -9 in the hand-over', () => {
  it('leaves one running copy, nothing lost and nothing behind', async () => {
    const records: RunRecord[] = [];
    await runCampaign({
      cells, baselineBytes: 0, keepLogsAt: null, tell: () => undefined, onLab: () => undefined,
      interrupted: new AbortController().signal,
      onRecord: (record) => {
        records.push(record);
        const { cell, outcome, told, recoveredMs, wholeMs } = record;
        console.info(`${cell === null ? '-' : nameOfCell(cell)}: ${outcome} (${told}), answers `
          + `${recoveredMs} ms after the fault, ${wholeMs} ms in all`);
      },
    });
    expect(records.map(({ cell, violations }) => [cell, violations]))
      .toEqual(cells.map((cell) => [cell, []]));
    expect(records.map(({ outcome }) => outcome)).toEqual(['completed', 'stayed', 'completed']);
    for (const record of records) {
      expect(record).toMatchObject({
        guestVerified: true, vcpuRunningMax: 1, effectiveMax: 1, lostWrites: 0 });
    }
  });
});
