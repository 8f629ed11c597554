/** `evacuateHost` against a time-skipping server, a real ledger and hosts that keep books. */
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type {
  EvacuateHostInput, EvacuationOutcome, EvacuationPolicy,
} from '../../contracts/evacuation.ts';
import { CodedError, readFailure } from '../../contracts/failures.ts';
import { evacuationId, hostName, migrationId, requestId } from '../../contracts/identity.ts';
import type { HostName, VmName } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import {
  commandEvacuation, evacuationOutcome, evacuationStatus, startEvacuation,
} from '../../payloads/evacuation-client.ts';
import { commandMigration, startMigration } from '../../payloads/migration-client.ts';
import { FakeDatacentre } from './support/fake-datacentre.ts';
import { allWorkers, timeSkippingBench } from './support/workbench.ts';
import type { Bench, Running } from './support/workbench.ts';

const bench: Bench = await timeSkippingBench();
if (bench.env === null) console.warn(`skipped: time-skipped workflow tests need ${bench.missing}`);

describe.skipIf(bench.env === null)('evacuateHost', () => {
  const env = bench.env!;
  let centre: FakeDatacentre;
  let workers: Running;
  let round = 0;
  let [hostA, hostB, hostC] = [hostName('a'), hostName('b'), hostName('c')];

  afterAll(() => env.teardown());
  beforeEach(async () => {
    round += 1;
    // Temporal's server outlives each test: names do not come twice.
    [hostA, hostB, hostC] = [hostName(`a${round}`), hostName(`b${round}`), hostName(`c${round}`)];
    centre = await FakeDatacentre.open([hostA, hostB, hostC]);
    workers = await allWorkers({ env, centre });
  });
  afterEach(async () => {
    await workers.stop();
    await centre.close();
  });

  const vms = (count: number, host: HostName = hostA): Promise<VmName[]> => Promise.all(
    Array.from({ length: count }, (_, index) => centre.runningVm(`vm-${round}-${index}`, host)));
  const input = (policy: Partial<EvacuationPolicy> = {}, request = 'r'): EvacuateHostInput => ({
    version: 1, host: hostA, request: requestId(request),
    policy: { ...defaultEvacuationPolicy, ...policy },
  });
  const evacuate = async (
    policy: Partial<EvacuationPolicy> = {}, request = 'r',
  ): Promise<EvacuationOutcome> =>
    (await startEvacuation(env.client, input(policy, request))).handle.result();
  const failureCodeOf = async (work: Promise<unknown>): Promise<string> =>
    work.then(() => 'none', (error: unknown) => readFailure(error)?.code ?? String(error));
  const begunOrder = (): string[] => centre.switched;
  const moving = (count: number): Promise<void> =>
    expect.poll(() => centre.sessions.size, { timeout: 10_000 }).toBe(count);
  const expectEmpty = async (all: readonly VmName[]): Promise<void> => {
    for (const vm of all) {
      expect(centre.whereRuns(vm), vm).toHaveLength(1);
      expect(centre.whereRuns(vm), vm).not.toContain(hostA);
      expect(await centre.entry(vm)).toMatchObject({ phase: 'owned' });
    }
  };

  it('moves all VMs to the other hosts, spread, so many at a time', async () => {
    const all = await vms(6);
    centre.copyMs = 150;
    const outcome = await evacuate({ concurrency: 2 });
    expect(outcome).toMatchObject({ kind: 'completed', movedCount: 6, skipped: [], failure: null });
    await expectEmpty(all);
    expect(all.map((vm) => centre.whereRuns(vm)[0]).toSorted())
      .toEqual([hostB, hostB, hostB, hostC, hostC, hostC]);
    expect(centre.sessionsMax).toBe(2);
    expect((await centre.control.listHosts()).map(({ cordoned }) => cordoned))
      .toEqual([false, false, false]);
  });

  it('cordons first when it drains; has nothing to do on an empty host; names an unknown one',
    async () => {
      expect(await evacuate({ cordon: true })).toMatchObject({ kind: 'completed', movedCount: 0 });
      expect((await centre.control.listHosts()).find(({ facts }) => facts.name === hostA))
        .toMatchObject({ cordoned: true });
      const nowhere = { ...input({}, 'n'), host: hostName(`x${round}`) };
      expect(await (await startEvacuation(env.client, nowhere)).handle.result())
        .toMatchObject({ kind: 'failed', failure: { code: 'host/unknown' } });
    });

  it('keeps the order: the named first, then by the policy', async () => {
    const [zero, one, two, three] = await vms(4);
    await evacuate({ concurrency: 1, order: 'name', first: [three!, one!] });
    expect(begunOrder()).toEqual([three, one, zero, two]);
  });

  it('waits for its window', async () => {
    const all = await vms(1);
    const nowMs = await env.currentTimeMs();
    const minute = Math.floor(nowMs / 60_000) % 1_440;
    const window = { fromMinute: (minute + 120) % 1_440, untilMinute: (minute + 180) % 1_440 };
    const outcome = await evacuate({ window });
    expect(outcome.kind).toBe('completed');
    expect(outcome.totalMs).toBeGreaterThan(119 * 60_000);
    expect(outcome.totalMs).toBeLessThan(122 * 60_000);
    await expectEmpty(all);
  });

  it('tries another host where one refuses, and skips what none takes', async () => {
    const [stuck, ...others] = await vms(3);
    centre.faults.set('checkTarget', ({ vm }, host) => {
      if (host === hostB) throw new CodedError('preflight/memory', 'full');
      if (vm === stuck) throw new CodedError('preflight/cpu', 'no avx2');
    });
    const outcome = await evacuate();
    expect(outcome).toMatchObject({ kind: 'partial', movedCount: 2,
      skipped: [{ vm: stuck, failure: { code: 'evacuation/no-target' } }] });
    const detail = outcome.skipped[0]?.failure.detail;
    expect(detail).toContain(`${hostB}: preflight/memory (full)`);
    expect(detail).toContain(`${hostC}: preflight/cpu (no avx2)`);
    for (const vm of others) expect(centre.whereRuns(vm)).toEqual([hostC]);
    expect(centre.whereRuns(stuck!)).toEqual([hostA]);
  });

  it('goes only where it is told to, and not to a cordoned host', async () => {
    const all = await vms(2);
    await centre.control.propose([{ kind: 'cordon-host', host: hostC, cordoned: true }]);
    expect(await evacuate({ targets: [hostC] })).toMatchObject({ kind: 'partial', movedCount: 0 });
    expect(await evacuate({}, 'r2')).toMatchObject({ kind: 'completed', movedCount: 2 });
    for (const vm of all) expect(centre.whereRuns(vm)).toEqual([hostB]);
  });

  it('tries again what failed and may pass; a stopped VM is skipped and told', async () => {
    const [weak, off] = await vms(2);
    await centre.control.propose([
      { kind: 'desire', vm: off!, epoch: 1, desired: 'stopped' }]);
    let tries = 0;
    centre.faults.set('switchover', () => {
      tries += 1;
      if (tries < 3) throw new CodedError('engine/failed', 'broken');
    });
    const outcome = await evacuate();
    expect(outcome).toMatchObject({ kind: 'partial', movedCount: 1,
      skipped: [{ vm: off, failure: { code: 'vm/not-running' } }] });
    expect(tries).toBe(3);
    expect(centre.whereRuns(weak!)).toEqual([hostB]);
    const { rows } = await evacuationStatus(env.client, hostA);
    expect(rows.find(({ vm }) => vm === weak)).toMatchObject({ attempts: 3, state: 'moved' });
  });

  it('waits for a move of somebody else, and takes a cancel of theirs as their wish', async () => {
    const [theirs, kept] = await vms(2);
    centre.copyMs = 1_000;
    await startMigration(env.client, {
      version: 1, vm: theirs!, target: hostC, request: requestId('own'), policy: defaultPolicy });
    await moving(1);
    const { handle } = await startEvacuation(env.client, input());
    await moving(2);
    await commandMigration(env.client, migrationId(kept!, requestId('r.1')),
      { kind: 'cancel', by: 'ada' });
    expect(await handle.result()).toMatchObject({ kind: 'partial', movedCount: 0,
      skipped: [{ vm: kept, failure: { code: 'migration/cancelled', detail: 'by ada' } }] });
    expect((await evacuationStatus(env.client, hostA)).rows)
      .toEqual(expect.arrayContaining([expect.objectContaining({ vm: theirs, state: 'left' })]));
  });

  it('joins the same request and refuses another one with the one that runs', async () => {
    await vms(1);
    centre.copyMs = 1_000;
    const first = await startEvacuation(env.client, input());
    await moving(1);
    expect((await startEvacuation(env.client, input())).joined).toBe(true);
    expect(await failureCodeOf(startEvacuation(env.client, input({}, 'other'))))
      .toBe('evacuation/open');
    expect(await first.handle.result()).toMatchObject({ kind: 'completed' });
    expect(await failureCodeOf(commandEvacuation(env.client, hostB, { kind: 'pause' })))
      .toBe('evacuation/unknown');
  });

  it('goes on where a terminated one stopped, whose moves end by themselves', async () => {
    const all = await vms(4);
    centre.copyMs = 700;
    const first = await startEvacuation(env.client, input({ concurrency: 2 }));
    await moving(2);
    await first.handle.terminate('the test');
    const again = await startEvacuation(env.client, input({ concurrency: 2 }));
    expect(await again.handle.result()).toMatchObject({ kind: 'completed' });
    await expectEmpty(all);
    expect(centre.switched.toSorted(), 'no VM went over twice').toEqual(all.toSorted());
  });

  it.each(['the update', 'a request'])('is cancelled by %s: no VM is torn', async (way) => {
    const all = await vms(3);
    centre.copyMs = 60_000;
    const { handle } = await startEvacuation(env.client, input({ concurrency: 2 }));
    await moving(2);
    if (way === 'the update') {
      await commandEvacuation(env.client, hostA, { kind: 'cancel', by: 'ada' });
      expect(await failureCodeOf(commandEvacuation(env.client, hostA, { kind: 'pause' })))
        .toBe('migration/cancelled');
    } else {
      await handle.cancel();
    }
    const outcome = await evacuationOutcome(env.client, hostA);
    expect(outcome).toMatchObject({ kind: 'cancelled', movedCount: 0 });
    expect(outcome.skipped).toHaveLength(3);
    for (const vm of all) {
      expect(centre.whereRuns(vm)).toEqual([hostA]);
      expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostA });
    }
    expect(centre.prepared.size).toBe(0);
  });

  it('hands a long history over to a new run', async () => {
    const all = await vms(8);
    const outcome = await evacuate({ concurrency: 2, historyEventsMax: 60 });
    expect(outcome).toMatchObject({ kind: 'completed', movedCount: 8 });
    await expectEmpty(all);
    const { raw } = await env.client.workflow.getHandle(evacuationId(hostA)).describe();
    const { firstRunId, execution } = raw.workflowExecutionInfo ?? {};
    expect(execution?.runId).not.toBe(firstRunId);
  });
});
