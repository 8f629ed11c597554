/** `evacuateHost` on a development server: commands, a replaced worker, what is shown. */
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type { EvacuationPolicy } from '../../contracts/evacuation.ts';
import { evacuationId, hostName, requestId } from '../../contracts/identity.ts';
import type { HostName, VmName } from '../../contracts/identity.ts';
import { migrationSearchAttributes } from '../../contracts/migration.ts';
import {
  commandEvacuation, evacuationStatus, startEvacuation, viewEvacuation,
} from '../../payloads/evacuation-client.ts';
import { FakeDatacentre } from './support/fake-datacentre.ts';
import { allWorkers, devServerBench } from './support/workbench.ts';
import type { Bench, Running } from './support/workbench.ts';

const bench: Bench = await devServerBench();
if (bench.env === null) console.warn(`skipped: they need ${bench.missing}`);

describe.skipIf(bench.env === null)('evacuateHost on a development server', () => {
  const env = bench.env!;
  let centre: FakeDatacentre;
  let workers: Running;
  let round = 0;
  let [hostA, hostB, hostC] = [hostName('a'), hostName('b'), hostName('c')];

  afterAll(() => env.teardown());
  beforeEach(async () => {
    round += 1;
    [hostA, hostB, hostC] = [hostName(`a${round}`), hostName(`b${round}`), hostName(`c${round}`)];
    centre = await FakeDatacentre.open([hostA, hostB, hostC]);
    workers = await allWorkers({ env, centre });
  });
  afterEach(async () => {
    await workers.stop();
    await centre.close();
  });

  const vms = (count: number): Promise<VmName[]> => Promise.all(
    Array.from({ length: count }, (_, index) => centre.runningVm(`vm-${round}-${index}`, hostA)));
  const start = (policy: Partial<EvacuationPolicy>): ReturnType<typeof startEvacuation> =>
    startEvacuation(env.client, {
      version: 1, host: hostA, request: requestId('r'),
      policy: { ...defaultEvacuationPolicy, ...policy },
    });
  const moving = (count: number): Promise<void> =>
    expect.poll(() => centre.sessions.size, { timeout: 20_000 }).toBe(count);
  const expectEmpty = (all: readonly VmName[]): void => {
    for (const vm of all) {
      const hosts: readonly HostName[] = centre.whereRuns(vm);
      expect(hosts, vm).toHaveLength(1);
      expect(hosts, vm).not.toContain(hostA);
    }
  };

  it('pauses, resumes, changes its bandwidth, shows how far it is', async () => {
    const all = await vms(3);
    centre.copyMs = 1_500;
    const { handle } = await start({
      concurrency: 2, bandwidthBytesPerSecond: 8_000_000, order: 'name' });
    await moving(2);
    const sessions = () => [...centre.sessions.values()];
    await expect.poll(async () => (await viewEvacuation(env.client, hostA)).moves.size).toBe(2);
    await commandEvacuation(env.client, hostA, { kind: 'pause' });
    expect(sessions().map(({ paused }) => paused)).toEqual([true, true]);
    expect(await evacuationStatus(env.client, hostA)).toMatchObject({ paused: true });
    await commandEvacuation(env.client, hostA,
      { kind: 'set-bandwidth', bandwidthBytesPerSecond: 6_000_000 });
    await expect.poll(() => sessions().map(({ bandwidth }) => bandwidth))
      .toEqual([3_000_000, 3_000_000]);
    await commandEvacuation(env.client, hostA, { kind: 'resume' });
    expect(sessions().map(({ paused }) => paused)).toEqual([false, false]);
    // The last one has the whole of it.
    await expect.poll(() => sessions().map(({ bandwidth }) => bandwidth), { timeout: 10_000 })
      .toEqual([6_000_000]);
    expect(await handle.result()).toMatchObject({ kind: 'completed', movedCount: 3 });
    expect((await viewEvacuation(env.client, hostA)).progress)
      .toMatchObject({ percent: 100, etaMs: 0, counts: { moved: 3 } });
    expectEmpty(all);
  });

  it('survives a control worker that is replaced midway', async () => {
    const all = await vms(4);
    centre.copyMs = 600;
    const { handle } = await start({ concurrency: 2 });
    await moving(2);
    await workers.stop();
    workers = await allWorkers({ env, centre });
    expect(await handle.result()).toMatchObject({ kind: 'completed', movedCount: 4 });
    expectEmpty(all);
    expect(centre.switched).toHaveLength(4);
  });

  it('can be found by its host and its outcome, and its moves by theirs', async () => {
    const all = await vms(2);
    const { handle } = await start({});
    await handle.result();
    const { searchAttributes } = await handle.describe();
    expect(searchAttributes).toMatchObject({
      [migrationSearchAttributes.source]: [hostA], [migrationSearchAttributes.phase]: ['done'],
      [migrationSearchAttributes.outcome]: ['completed'],
    });
    const query = `WorkflowType = 'migrateVm' AND ${migrationSearchAttributes.source} = '${hostA}'`;
    await expect.poll(async () => (await env.client.workflow.count(query)).count,
      { timeout: 10_000 }).toBe(all.length);
    expect(handle.workflowId).toBe(evacuationId(hostA));
  });
});
