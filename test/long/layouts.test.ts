/**
 * Layouts that preflight lets through, moved under a load that writes: every page of both images is
 * compared, ten times, and then the guest goes on at a target. What preflight refuses is in
 * runners/hypervisor/inspection.test.ts.
 */
import { existsSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import { EngineLab, missingParts, uefi } from '../e2e/engine-lab.ts';
import { checkedBytes, missedBy } from '../support/checked-move.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`moves of layouts are skipped: ${lacking} missing`);
const hasUefi = existsSync(uefi.code);
if (!hasUefi) console.warn('the move with UEFI is skipped: OVMF missing (apt install ovmf)');

const load = 'novacron.working=48M novacron.rate=20M';
const moveCount = 10;
const none = Array.from({ length: moveCount }, () => 0);

describe.skipIf(lacking !== null)('layouts', () => {
  let lab: EngineLab;
  afterEach(() => lab.close());

  const missedIn = async (
    layout: { readonly vcpuCount: number; readonly firmware?: 'bios' | 'uefi' },
  ): Promise<number[]> => {
    await lab.open();
    const memoryBytes = checkedBytes;
    const source = await lab.vmm({ memoryBytes, load, ...layout });
    await source.ticked(20);
    const missed: number[] = [];
    while (missed.length < moveCount) missed.push(await missedBy(lab, source, layout));
    const target = await lab.vmm({ memoryBytes, incoming: true, ...layout });
    await lab.move({ source, target, memoryBytes });
    const [before] = source.ticks.at(-1) ?? [0];
    await target.ticked(5);
    const [after, failures] = target.ticks.at(-1) ?? [0, -1];
    expect(failures).toBe(0);
    expect(after).toBeGreaterThan(before);
    return missed;
  };

  test('four vCPUs', async () => {
    lab = new EngineLab();
    expect(await missedIn({ vcpuCount: 4 })).toEqual(none);
  });

  test.runIf(hasUefi)('q35 with OVMF, two vCPUs', async () => {
    lab = new EngineLab();
    expect(await missedIn({ vcpuCount: 2, firmware: 'uefi' })).toEqual(none);
  });
});
