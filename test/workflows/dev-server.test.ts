/** What only a real server shows: updates, search attributes, pinned versions, reset, restarts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { CodedError } from '../../contracts/failures.ts';
import { failoverRequest, hostName, requestId } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import { limits } from '../../contracts/limits.ts';
import { defaultPolicy, migrationSearchAttributes } from '../../contracts/migration.ts';
import type { MigrateVmInput, MigrationPolicy } from '../../contracts/migration.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import {
  commandMigration, migrationOutcome, startMigration, viewMigration,
} from '../../payloads/migration-client.ts';
import { createPayloadKeys } from '../../payloads/payload-keys.ts';
import { makeCurrent } from '../../runners/control/deployment.ts';
import { FakeDatacentre } from './support/fake-datacentre.ts';
import {
  allWorkers, controlWorker, devServerBench, hostWorker, Running,
} from './support/workbench.ts';
import type { Bench } from './support/workbench.ts';

const folder = mkdtempSync(join(tmpdir(), 'novacron-workflows-'));
const payloadKeysPath = join(folder, 'payload-keys.json');
await createPayloadKeys(payloadKeysPath, Date.now());
const bench: Bench = await devServerBench({ payloadKeysPath });
if (bench.env === null) console.warn(`skipped: tests on a real server need ${bench.missing}`);
const [hostA, hostB, hostC] = [hostName('host-a'), hostName('host-b'), hostName('host-c')];

afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.skipIf(bench.env === null)('on a development server', () => {
  const env = bench.env!;
  let centre: FakeDatacentre;
  let workers: Running;
  let vm: VmName;
  let vmNumber = 0;

  afterAll(() => env.teardown());
  beforeEach(async () => {
    centre = await FakeDatacentre.open();
    workers = await allWorkers({ env, centre, payloadKeysPath });
    vmNumber += 1;
    vm = await centre.runningVm(`dev-${vmNumber}`, hostA);
  });
  afterEach(async () => {
    await workers.stop();
    await centre.close();
  });

  const input = (
    request: string, policy: Partial<MigrationPolicy> = {}, target = hostB,
  ): MigrateVmInput => ({
    version: 1, vm, target, request: requestId(request), policy: { ...defaultPolicy, ...policy },
  });
  const copying = async (request: string, policy: Partial<MigrationPolicy> = {}) => {
    const started = await startMigration(env.client, input(request, policy));
    await expect.poll(() => centre.sessions.size, { timeout: 20_000 }).toBe(1);
    return started;
  };

  it('takes pause, resume and limits, each in less than a second, and shows them', async () => {
    centre.copyMs = 1_500;
    const { handle, migration } = await copying('r1');
    const session = [...centre.sessions.values()][0]!;
    await commandMigration(env.client, migration, { kind: 'pause' });
    expect(session.paused).toBe(true);
    const status = await commandMigration(
      env.client, migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 5_000_000 },
    );
    expect(status.policy.bandwidthBytesPerSecond).toBe(5_000_000);
    expect(session.bandwidth).toBe(5_000_000);
    await expect.poll(
      async () => (await viewMigration(env.client, migration)).status.progress?.bytesPlanned,
      { timeout: 5_000 },
    ).toBe(256 * 2 ** 20);
    const view = await viewMigration(env.client, migration);
    expect(view.status).toMatchObject({ phase: 'copy-memory', source: hostA, target: hostB });
    expect(view.status.percent).toBeGreaterThan(3);
    const began = performance.now();
    await commandMigration(env.client, migration, { kind: 'resume' });
    expect(performance.now() - began).toBeLessThan(1_000);
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    const { historyLength } = await handle.describe();
    expect(historyLength).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
  });

  it('shows how far the check at the target is, from its heartbeats alone', async () => {
    centre.check = { version: 1, pagesDone: 30_000, pagesTotal: 40_000, etaMs: 60_000 };
    const release = Promise.withResolvers<void>();
    centre.faults.set('verifyTarget', () => release.promise);
    const { handle, migration } = await startMigration(env.client, input('r1'));
    await expect.poll(
      async () => (await viewMigration(env.client, migration)).check?.pagesDone,
      { timeout: 20_000 },
    ).toBe(30_000);
    const { status, check } = await viewMigration(env.client, migration);
    expect(status).toMatchObject({ phase: 'verify', percent: 97.5 });
    expect(check?.etaMs).toBeGreaterThan(50_000);
    release.resolve();
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    expect((await viewMigration(env.client, migration)).check).toBeNull();
  });

  it('keeps its history short when a session does not answer', async () => {
    centre.disks = 1;
    vm = await centre.runningVm(`${vm}-mute`, hostA);
    centre.faults.set('commandSession', () => { throw new CodedError('vmm/protocol', 'mute'); });
    let attempts = 0;
    const release = Promise.withResolvers<void>();
    // Two losses later the third copy goes through: as much as a move can need.
    centre.faults.set('copyMemoryAndSwitchOver', async () => {
      attempts += 1;
      if (attempts === 1) await release.promise;
      if (attempts <= 2) throw new CodedError('runner/session-lost', `loss ${attempts}`);
    });
    const { handle, migration } = await startMigration(env.client, input('r1'));
    await expect.poll(() => attempts, { timeout: 20_000 }).toBe(1);
    const refusals: string[] = [];
    for (let count = 0; count < 60; count += 1) {
      await commandMigration(env.client, migration, {
        kind: 'set-bandwidth', bandwidthBytesPerSecond: 1_000_000 + count,
      }).catch((error: unknown) => refusals.push(String(error)));
    }
    expect(refusals).toHaveLength(60);
    // Who asks again at once is told to wait, at no cost; the session is asked once.
    expect(centre.calls.filter((call) => call.endsWith('commandSession'))).toHaveLength(1);
    expect(refusals.at(-1)).toMatch(/did not answer/);
    release.resolve();
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    expect((await handle.describe()).historyLength).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
  });

  it('keeps its history short when many commands were followed by lost sessions', async () => {
    centre.disks = 1;
    vm = await centre.runningVm(`${vm}-busy`, hostA);
    centre.copyMs = 60_000;
    const { handle, migration } = await copying('r1');
    let refusal = '';
    for (let count = 1; refusal === '' && count < 30; count += 1) {
      await commandMigration(env.client, migration, {
        kind: 'set-bandwidth', bandwidthBytesPerSecond: 1_000_000 + count,
      }).catch((error: unknown) => { refusal = String(error); });
    }
    expect(refusal).toMatch(/too many commands/);
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      throw new CodedError('runner/session-lost', 'killed');
    });
    const [session] = centre.sessions.values();
    const first = await handle.describe();
    centre.sessions.clear();
    centre.copyMs = 10;
    session!.fail(new CodedError('runner/session-lost', 'killed'));
    // What does not fit this run's history is done in the next.
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    const ended = [handle, env.client.workflow.getHandle(first.workflowId, first.runId)];
    for (const run of ended) {
      expect((await run.describe()).historyLength)
        .toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
    }
  });

  it('keeps its history short when it is cancelled again and again', async () => {
    centre.copyMs = 60_000;
    const wait = Promise.withResolvers<void>();
    centre.faults.set('discardTarget', () => wait.promise);
    const { handle, migration } = await startMigration(env.client, input('r1'));
    await expect.poll(() => centre.sessions.size, { timeout: 20_000 }).toBe(1);
    const again = async (): Promise<void> => {
      await commandMigration(env.client, migration, { kind: 'cancel', by: 'again' });
      // Whoever talks to Temporal directly does not know our ids.
      await handle.executeUpdate('cancel', { args: [{ by: 'directly' }] }).catch(() => undefined);
    };
    for (let count = 0; count < 40; count += 1) await again();
    wait.resolve();
    expect(await handle.result()).toMatchObject({ kind: 'cancelled', by: 'again' });
    expect((await handle.describe()).historyLength).toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
  });

  it('has one look open at a time while no control worker answers, and goes on at once', async () => {
    centre.copyMs = 3_000;
    const { handle, migration } = await copying('r1');
    await workers.stop();
    const handles = vi.spyOn(env.client.workflow, 'getHandle');
    const looks = Array.from({ length: 50 }, () => viewMigration(env.client, migration));
    expect(handles).toHaveBeenCalledTimes(1);
    handles.mockRestore();
    await sleep(3_000);
    workers = await allWorkers({ env, centre, payloadKeysPath });
    const begunMs = performance.now();
    expect(new Set((await Promise.all(looks)).map(({ status }) => status.vm))).toEqual(new Set([vm]));
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    expect(performance.now() - begunMs).toBeLessThan(5_000);
    // Afterwards it is asked anew.
    expect((await viewMigration(env.client, migration)).status.phase).toBe('done');
  });

  it('goes on as fast while somebody looks ten times a second', async () => {
    centre.copyMs = 3_000;
    const { handle, migration } = await copying('r1');
    const begunMs = performance.now();
    const took: number[] = [];
    let failed = 0;
    const timer = setInterval(() => {
      const askedMs = performance.now();
      viewMigration(env.client, migration).then(
        () => took.push(performance.now() - askedMs), () => { failed += 1; });
    }, 100);
    const outcome = await handle.result().finally(() => clearInterval(timer));
    const wholeMs = performance.now() - begunMs;
    console.info(`${took.length} looks, worst ${Math.max(...took).toFixed(0)} ms, `
      + `${failed} failed; the move took ${wholeMs.toFixed(0)} ms`);
    expect(outcome).toMatchObject({ kind: 'completed' });
    expect(wholeMs).toBeLessThan(10_000);
    expect((await handle.describe()).historyLength).toBeLessThan(90);
  });

  it('cancels within a second before the point of no return, and refuses after it', async () => {
    centre.copyMs = 60_000;
    const first = await copying('r1');
    const began = performance.now();
    await commandMigration(env.client, first.migration, { kind: 'cancel', by: 'test' });
    expect(performance.now() - began).toBeLessThan(1_000);
    expect(await first.handle.result()).toMatchObject({ kind: 'cancelled', by: 'test' });
    expect(centre.whereRuns(vm)).toEqual([hostA]);

    centre.copyMs = 20;
    let release = (): void => {};
    const held = new Promise<void>((resolve) => { release = resolve; });
    centre.faults.set('verifyTarget', () => held);
    const second = await startMigration(env.client, input('r2'));
    await expect.poll(() => centre.calls.includes(`${hostB} verifyTarget`), { timeout: 20_000 })
      .toBe(true);
    await expect(commandMigration(env.client, second.migration, { kind: 'cancel', by: 'test' }))
      .rejects.toMatchObject({ code: 'migration/past-return' });
    release();
    expect(await second.handle.result()).toMatchObject({ kind: 'completed' });
  });

  it('passes on the refusal of a session that is past the return before the workflow knows', async () => {
    centre.copyMs = 20;
    let release = (): void => {};
    const held = new Promise<void>((resolve) => { release = resolve; });
    centre.faults.set('started', () => held);
    const { handle, migration } = await startMigration(env.client, input('r1'));
    await expect.poll(async () => (await centre.entry(vm))?.phase, { timeout: 20_000 }).toBe('unsettled');
    await expect(commandMigration(env.client, migration, { kind: 'cancel', by: 'test' }))
      .rejects.toMatchObject({ code: 'migration/past-return' });
    release();
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
  });

  it('refuses commands that make no sense, before they reach the history', async () => {
    centre.copyMs = 800;
    const { handle, migration } = await copying('r1', { postCopy: 'never' });
    const give = (command: Parameters<typeof commandMigration>[2]) =>
      commandMigration(env.client, migration, command);
    const before = (await handle.fetchHistory()).events?.length ?? 0;
    await expect(give({ kind: 'post-copy-now' })).rejects.toMatchObject({ code: 'input/invalid' });
    await expect(give({ kind: 'set-bandwidth', bandwidthBytesPerSecond: -1 }))
      .rejects.toMatchObject({ code: 'input/invalid' });
    await expect(give({ kind: 'set-downtime-budget', downtimeBudgetMs: 1.5 }))
      .rejects.toMatchObject({ code: 'input/invalid' });
    const after = (await handle.fetchHistory()).events ?? [];
    expect(after.slice(before).filter(({ workflowExecutionUpdateAcceptedEventAttributes: a }) => a))
      .toEqual([]);
    await handle.result();
    await expect(give({ kind: 'pause' })).rejects.toBeInstanceOf(Error);
  });

  it('stays below 150 events under a storm of commands, and cancel still works', async () => {
    centre.copyMs = 60_000;
    const { handle, migration } = await copying('r1');
    let refused = 0;
    for (let number = 1; number <= 20; number += 1) {
      await commandMigration(
        env.client, migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: number },
      ).catch(() => { refused += 1; });
    }
    expect(refused).toBeGreaterThan(0);
    await commandMigration(env.client, migration, { kind: 'cancel', by: 'test' });
    expect(await handle.result()).toMatchObject({ kind: 'cancelled' });
    expect((await handle.describe()).historyLength)
      .toBeLessThanOrEqual(limits.migrationHistoryEventsMax);
  });

  it('can be found by its search attributes, and its payloads are not readable', async () => {
    const { handle, migration } = await startMigration(env.client, input('r1'));
    await handle.result();
    const { vm: vmName, phase, outcome } = migrationSearchAttributes;
    const query = `${vmName} = '${vm}' AND ${phase} = 'done' AND ${outcome} = 'completed'`;
    await expect.poll(async () => {
      const found: string[] = [];
      for await (const { workflowId } of env.client.workflow.list({ query })) found.push(workflowId);
      return found;
    }, { timeout: 20_000 }).toEqual([migration]);
    const text = JSON.stringify(await handle.fetchHistory());
    expect(text).not.toContain(Buffer.from('downtimeBudgetMs').toString('base64').slice(0, 16));
    expect(text).not.toContain('d1d1d1');
  });

  it('joins the same request and answers it again', async () => {
    centre.copyMs = 300;
    const first = await startMigration(env.client, input('r1'));
    const second = await startMigration(env.client, input('r1'));
    const [one, two] = await Promise.all([first.handle.result(), second.handle.result()]);
    expect(two).toEqual(one);
    const late = await startMigration(env.client, input('r1'));
    expect(await late.handle.result()).toEqual(one);
    expect(centre.calls.filter((call) => call.endsWith('switchover'))).toHaveLength(1);
  });

  it('goes on when control and host workers are replaced in mid-copy', async () => {
    centre.copyMs = 3_000;
    const { handle } = await copying('r1');
    await workers.stop();
    workers = await allWorkers({ env, centre, payloadKeysPath });
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    expect(centre.calls.filter((call) => call.endsWith('switchover'))).toHaveLength(1);
    expect([...centre.sessions.values()]).toEqual([]);
  });

  it('a reset in mid-copy joins the running session', async () => {
    centre.copyMs = 6_000;
    const { handle, migration } = await copying('r1');
    const { runId } = await handle.describe();
    const events = (await handle.fetchHistory()).events ?? [];
    const point = events.find(({ workflowTaskCompletedEventAttributes: a }) => a)?.eventId;
    await env.client.workflowService.resetWorkflowExecution({
      namespace: env.namespace ?? 'default',
      workflowExecution: { workflowId: migration, runId },
      reason: 'test', workflowTaskFinishEventId: point ?? null, requestId: `reset-${vm}`,
    });
    expect(await migrationOutcome(env.client, migration)).toMatchObject({ kind: 'completed' });
    expect(centre.calls.filter((call) => call.endsWith('switchover'))).toHaveLength(1);
    expect(centre.whereRuns(vm)).toEqual([hostB]);
    expect(await centre.entry(vm)).toMatchObject({ phase: 'owned', owner: hostB });
  });

  it('a reset of a completed move finds it completed', async () => {
    const { handle, migration } = await startMigration(env.client, input('r1'));
    await handle.result();
    const events = (await handle.fetchHistory()).events ?? [];
    const point = events.find(({ workflowTaskCompletedEventAttributes: a }) => a)?.eventId;
    const { runId } = await handle.describe();
    await env.client.workflowService.resetWorkflowExecution({
      namespace: env.namespace ?? 'default',
      workflowExecution: { workflowId: migration, runId },
      reason: 'test', workflowTaskFinishEventId: point ?? null, requestId: `reset-done-${vm}`,
    });
    expect(await migrationOutcome(env.client, migration)).toMatchObject({
      kind: 'completed', epochBefore: 1, epochAfter: 2, source: hostA,
    });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
  });

  it('creates, starts, stops and deletes a VM', async () => {
    const run = (step: 'start' | 'delete', request: string) => runLifecycle(env.client, {
      step, input: { version: 1, vm, request: requestId(request) },
    });
    vm = centre.spec(`${vm}-life`).name as VmName;
    const create = await runLifecycle(env.client, {
      step: 'create',
      input: { version: 1, spec: centre.spec(vm), host: hostC, request: requestId('c1'), start: true },
    });
    expect(create.outcome).toMatchObject({ kind: 'completed', host: hostC, runState: 'running', epoch: 1 });
    const again = await runLifecycle(env.client, {
      step: 'create',
      input: { version: 1, spec: { ...centre.spec(vm), vcpuCount: 2 }, host: hostC, request: requestId('c2'), start: true },
    });
    expect(again.outcome).toMatchObject({ kind: 'failed', failure: { code: 'vm/exists' } });
    expect(centre.whereRuns(vm)).toEqual([hostC]);
    const stop = await runLifecycle(env.client, {
      step: 'stop', input: { version: 1, vm, request: requestId('s1'), graceMs: 100 },
    });
    expect(stop.outcome).toMatchObject({ kind: 'completed', runState: 'stopped' });
    expect((await run('delete', 'd1')).outcome).toMatchObject({ kind: 'completed', runState: 'absent' });
    expect(centre.files.size).toBe(0);
    expect((await run('start', 's2')).outcome).toMatchObject({
      kind: 'failed', failure: { code: 'vm/unknown' },
    });
  });

  it('starts a VM on shared volumes elsewhere, once, and no other VM', async () => {
    const fail = (of: VmName, fenceProof: string | null, to = hostC) => runLifecycle(env.client, {
      step: 'failover',
      input: { version: 1, vm: of, epoch: 1, request: failoverRequest(1), to, fenceProof },
    });
    expect((await fail(vm, 'power is off')).outcome).toMatchObject({
      kind: 'failed', failure: { code: 'preflight/local-disk' },
    });
    Object.assign(centre, { disks: 1, shared: true });
    const endOfSigns = centre.beHeard();
    const lost = await centre.runningVm(`${vm}-lost`, hostA);
    // No lease binds it: only somebody's word that its host is off gives it away.
    expect((await fail(lost, null)).outcome).toMatchObject({
      kind: 'failed', failure: { code: 'ownership/refused' },
    });
    centre.running.get(lost)?.delete(hostA);
    let attempts = 0;
    centre.faults.set('startVm', () => {
      attempts += 1;
      if (attempts === 1) throw new CodedError('vmm/timeout', 'a busy host');
    });
    const expected = { kind: 'completed', host: hostC, epoch: 2, runState: 'running' };
    const both = await Promise.all([fail(lost, 'power is off'), fail(lost, 'power is off')]);
    for (const { outcome } of both) expect(outcome).toMatchObject(expected);
    // Later, and to another host: what was decided stands.
    expect((await fail(lost, 'power is off', hostB)).outcome).toMatchObject(expected);
    expect(centre.whereRuns(lost)).toEqual([hostC]);
    expect(await centre.entry(lost)).toMatchObject({ owner: hostC, epoch: 2, lastStarted: 2 });
    endOfSigns();
  });

  it('leaves nothing of a creation that failed', async () => {
    vm = centre.spec(`${vm}-bad`).name as VmName;
    centre.faults.set('startVm', () => { throw new CodedError('vm/start-failed', 'no firmware'); });
    const { outcome } = await runLifecycle(env.client, {
      step: 'create',
      input: { version: 1, spec: centre.spec(vm), host: hostC, request: requestId('c1'), start: true },
    });
    expect(outcome).toMatchObject({
      kind: 'failed', failure: { code: 'vm/start-failed', detail: 'no firmware' }, compensationFailures: [],
    });
    expect(await centre.entry(vm)).toBeNull();
    expect(centre.files.size).toBe(0);
  });

  it('keeps a running move on the version that it began with', async () => {
    await workers.stop();
    workers = new Running();
    for (const host of centre.hosts) {
      workers.add(await hostWorker({ env, centre, payloadKeysPath }, host));
    }
    const version = (buildId: string) => ({ deploymentName: 'novacron-control', buildId });
    workers.add(await controlWorker({ env, centre, payloadKeysPath, buildId: 'one' }));
    expect(await makeCurrent(env.client, version('one'), 'always')).toBe(true);
    centre.copyMs = 4_000;
    const { handle } = await copying('r1');
    workers.add(await controlWorker({ env, centre, payloadKeysPath, buildId: 'two' }));
    expect(await makeCurrent(env.client, version('two'), 'always')).toBe(true);
    expect(await makeCurrent(env.client, version('one'), 'first')).toBe(false);
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    const { raw } = await handle.describe();
    const info = raw.workflowExecutionInfo?.versioningInfo;
    expect(info?.behavior).toBe(1);
    expect(info?.deploymentVersion?.buildId ?? info?.version).toContain('one');
  });
});
