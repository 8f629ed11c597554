/**
 * Layouts that preflight lets through, moved under a load that writes: every page of both images is
 * compared, ten times, and then the guest goes on at a target. What preflight refuses is in
 * runners/hypervisor/inspection.test.ts.
 */
import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { EngineLab, missingParts, uefi } from '../e2e/engine-lab.ts';
import type { Vmm } from '../e2e/engine-lab.ts';
import { checkedBytes, missedBy } from '../support/checked-move.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`moves of layouts are skipped: ${lacking} missing`);
const hasUefi = existsSync(uefi.code);
if (!hasUefi) console.warn('the move with UEFI is skipped: OVMF missing (apt install ovmf)');

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.warn('moves of huge pages are skipped: only root may mount a tmpfs with them');

const load = 'novacron.working=48M novacron.rate=20M';
const moveCount = 10;
const none = Array.from({ length: moveCount }, () => 0);

describe.skipIf(lacking !== null)('layouts', () => {
  let lab: EngineLab;
  afterEach(() => lab.close());

  interface Layout {
    readonly vcpuCount: number;
    readonly firmware?: 'bios' | 'uefi';
    readonly align?: '2M';
  }
  const memoryBytes = checkedBytes;

  /** Moves on to a new target, whose guest must go on and find its own memory whole. */
  const goOn = async (source: Vmm, layout: Layout, postCopy = false): Promise<Vmm> => {
    const target = await lab.vmm({ memoryBytes, incoming: true, ...layout });
    // The load writes more than the link carries: without post-copy it would not converge.
    const link = postCopy ? { postCopy, bandwidth: 15_000_000, downtimeBudgetMs: 30 } : {};
    const { decision } = await lab.move({ source, target, memoryBytes, ...link });
    expect(decision.decision).toBe(postCopy ? 'post-copy' : 'switch-over');
    const [before] = source.ticks.at(-1) ?? [0];
    await target.ticked(5);
    const [after, failures] = target.ticks.at(-1) ?? [0, -1];
    expect(failures).toBe(0);
    expect(after).toBeGreaterThan(before);
    source.kill();
    return target;
  };

  const running = async (layout: Layout): Promise<Vmm> => {
    await lab.open();
    const source = await lab.vmm({ memoryBytes, load, ...layout });
    await source.ticked(20);
    return source;
  };

  const missedOf = async (source: Vmm, layout: Layout): Promise<number[]> => {
    const missed: number[] = [];
    while (missed.length < moveCount) missed.push(await missedBy(lab, source, layout));
    return missed;
  };

  const missedIn = async (layout: Layout): Promise<number[]> => {
    const source = await running(layout);
    const missed = await missedOf(source, layout);
    await goOn(source, layout);
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

  // Aligned to 2 MiB the VMM maps huge pages as such, and one mark stands for 512 pages. Not
  // aligned, as a runner starts it, its own faults make none: a file that a move filled has them.
  test.runIf(isRoot).each([
    { huge: 'always', align: '2M' }, { huge: 'within_size' },
  ] as const)('transparent huge pages, tmpfs with huge=$huge, align=$align', async ({
    huge, ...aligned
  }) => {
    lab = new EngineLab({ huge });
    const layout: Layout = { vcpuCount: 2, ...aligned };
    const before = await steadyHugeBytes();
    const gained = (): number => hugeBytes() - before;
    const source = await running(layout);
    if (layout.align !== undefined) {
      expect(gained()).toBeGreaterThan(64 * mib);
      expect(mappedHugeBytes(source)).toBeGreaterThan(64 * mib);
    }
    expect(await missedOf(source, layout)).toEqual(none);
    const second = await goOn(source, layout);
    // A file that a move has filled has huge pages, however it is mapped.
    if (layout.align === undefined) {
      expect(gained()).toBeGreaterThan(64 * mib);
      expect(mappedHugeBytes(second)).toBe(0);
    }
    expect(await missedOf(second, layout)).toEqual(none);
    const third = await goOn(second, layout, true);
    expect(await missedOf(third, layout)).toEqual(none);
  });
});

const kibibytes = (text: string, name: string): number => [
  ...text.matchAll(new RegExp(`^${name}: +(\\d+) kB$`, 'gm'))
].reduce((sum, [, count]) => sum + Number(count), 0);
/** Huge pages in all of the machine's shared memory. */
const hugeBytes = (): number =>
  kibibytes(readFileSync('/proc/meminfo', 'utf8'), 'ShmemHugePages') * 1024;
/** Once VMMs that were killed before have given theirs back. */
async function steadyHugeBytes(): Promise<number> {
  for (let last = -1; ;) {
    const now = hugeBytes();
    if (now === last) return now;
    last = now;
    await sleep(500);
  }
}
/** Those that a VMM maps as huge pages. */
const mappedHugeBytes = (vmm: Vmm): number =>
  kibibytes(readFileSync(`/proc/${vmm.pid}/smaps`, 'utf8'), 'ShmemPmdMapped') * 1024;
