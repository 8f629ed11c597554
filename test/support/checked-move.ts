/**
 * A move as far as the standing target, both images compared by us and by the tracking check: what
 * the check finds is all that differs, and after the repair nothing does.
 */
import { readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { mib } from '../../contracts/units.ts';
import type { EngineLab, LabDisk, Vmm } from '../e2e/engine-lab.ts';

/** Memory of the guests that are moved so. */
export const checkedBytes = 256 * mib;
const pageBytes = 4096;

function differingPages(one: string, other: string): number {
  const [a, b] = [readFileSync(one), readFileSync(other)];
  let count = 0;
  for (let at = 0; at < a.length; at += pageBytes) {
    if (a.compare(b, at, at + pageBytes, at, at + pageBytes) !== 0) count += 1;
  }
  return count;
}

/** Pages that dirty tracking missed. The source goes on afterwards. */
export async function missedBy(
  lab: EngineLab, source: Vmm,
  { vcpuCount = 1, ...same }: {
    readonly vcpuCount?: number; readonly disk?: LabDisk; readonly firmware?: 'bios' | 'uefi';
    readonly align?: '2M';
  },
): Promise<number> {
  const memoryBytes = checkedBytes;
  const target = await lab.vmm({ memoryBytes, vcpuCount, incoming: true, ...same });
  const tried = lab.sessions({
    source, target, memoryBytes, postCopy: false, bandwidth: 0, downtimeBudgetMs: 300 });
  await tried.source.connect();
  tried.source.startPreCopy();
  await tried.source.waitConverged();
  await source.run('stop');
  await tried.source.finishMemory({ mode: 'pre-copy' });
  await tried.target.waitMemoryIn();
  const differing = differingPages(source.memoryPath, target.memoryPath);
  tried.target.beginCheck();
  tried.source.checkImage().catch(() => undefined);
  const { source: { wrongPageCount }, target: own } = await tried.target.waitChecked();
  expect([wrongPageCount, own.wrongPageCount]).toEqual([differing, 0]);
  await tried.target.repair();
  expect(differingPages(source.memoryPath, target.memoryPath)).toBe(0);
  await tried.source.abort();
  await tried.target.close();
  target.kill();
  await source.run('cont');
  return wrongPageCount;
}
