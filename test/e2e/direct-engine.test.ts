/** The engine alone between two real QEMUs: abort after the device state, second move, post-copy. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { EngineLab, missingParts } from './engine-lab.ts';
import type { MoveFigures, Vmm } from './engine-lab.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`moves of the direct engine are skipped: ${lacking} missing`);

const memoryBytes = 512 * mib;
const load = 'novacron.pattern=64M novacron.working=64M novacron.rate=';

const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

function report(name: string, figures: MoveFigures): void {
  const { parts, finished, snapshot } = figures;
  console.log(`${name}: total ${figures.totalMs.toFixed(0)} ms, pre-copy ${figures.preCopyMs.toFixed(0)} ms, `
    + `downtime ${figures.downtimeMs.toFixed(2)} ms, rounds ${snapshot.round + 1}, `
    + `wire ${(snapshot.bytesOnWire / 1e6).toFixed(1)} MB, last pass ${finished.lastPassPages} pages, `
    + `scan ${finished.scanMs.toFixed(2)}, holes ${finished.holesMs.toFixed(2)}, `
    + `send ${finished.sendMs.toFixed(2)} ms; ${figures.decision.reason}; ${JSON.stringify(parts)}`);
}

/** No damage, and the counter goes on without a gap over both consoles. */
function expectContinuity(...vmms: readonly Vmm[]): void {
  const ticks = vmms.flatMap((vmm) => vmm.ticks);
  expect(ticks.map(([, failures]) => failures).filter((count) => count > 0)).toEqual([]);
  expect(vmms.map((vmm) => vmm.log).join('')).not.toMatch(/damaged|panic/i);
  ticks.slice(1).forEach(([count], index) => expect(count).toBe((ticks[index]?.[0] ?? 0) + 1));
}

describe.skipIf(lacking !== null)('direct engine, QEMU 7.2', () => {
  let lab: EngineLab;
  beforeEach(async () => {
    lab = new EngineLab();
    await lab.open();
  });
  afterEach(() => lab.close());

  test.each([1, 2])('abort after the device state left, resume, a second move (%i vCPUs)', async (vcpuCount) => {
    const source = await lab.vmm({ memoryBytes, vcpuCount, load: `${load}max` });
    await source.ticked(20);
    const first = await lab.vmm({ memoryBytes, vcpuCount, incoming: true });
    report('given up', await lab.move({ source, target: first, memoryBytes, giveUp: true }));
    await source.ticked(20);
    expectContinuity(source);
    const second = await lab.vmm({ memoryBytes, vcpuCount, incoming: true });
    const moved = await lab.move({ source, target: second, memoryBytes });
    report('moved', moved);
    expect(moved.record.digest).toBe(moved.finished.digest);
    await second.ticked(20);
    expectContinuity(source, second);
    // A third, onwards from the host that was a target.
    const third = await lab.vmm({ memoryBytes, vcpuCount, incoming: true });
    report('onwards', await lab.move({ source: second, target: third, memoryBytes }));
    await third.ticked(20);
    expectContinuity(source, second, third);
  });

  test('memory is equal by sha256 while the target stands', async () => {
    const source = await lab.vmm({ memoryBytes, vcpuCount: 2, load: `${load}max` });
    await source.ticked(20);
    const target = await lab.vmm({ memoryBytes, vcpuCount: 2, incoming: true });
    const tried = lab.sessions({ source, target, memoryBytes, postCopy: false, bandwidth: 0, downtimeBudgetMs: 100 });
    await target.run('migrate-incoming', { uri: `unix:${tried.incomingSocket}` });
    await tried.source.connect();
    tried.source.startPreCopy();
    await tried.source.waitConverged();
    await source.run('stop');
    const finished = await tried.source.finishMemory({ mode: 'pre-copy' });
    const record = await tried.target.waitMemoryIn();
    expect(record.digest).toBe(finished.digest);
    expect(sha256(target.memoryPath)).toBe(sha256(source.memoryPath));
    await tried.source.close();
    await tried.target.close();
  });

  test('a guest above the link goes over by post-copy', async () => {
    const source = await lab.vmm({ memoryBytes, vcpuCount: 2, load: `${load}max` });
    await source.ticked(20);
    const target = await lab.vmm({ memoryBytes, vcpuCount: 2, incoming: true });
    const moved = await lab.move({
      source, target, memoryBytes, postCopy: true, bandwidth: 60_000_000, downtimeBudgetMs: 30,
    });
    report('post-copy', moved);
    expect(moved.decision.decision).toBe('post-copy');
    await target.ticked(30);
    expectContinuity(source, target);
    // And onwards by pre-copy, from the host that it reached by post-copy.
    const next = await lab.vmm({ memoryBytes, vcpuCount: 2, incoming: true });
    report('onwards', await lab.move({ source: target, target: next, memoryBytes }));
    await next.ticked(20);
    expectContinuity(source, target, next);
  });
});
