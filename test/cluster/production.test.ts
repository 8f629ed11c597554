/**
 * The production profile in a lab: the official Temporal server on PostgreSQL behind mutual TLS, two
 * control workers, three host runners with real guests. Control workers and server are killed and
 * come back in mid-move. Stand-ins for hosts, in a namespace of their own, show what real ones can't
 * be made to do: to be exactly between STOP and the commit when something dies.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Client } from '@temporalio/client';
import { NativeConnection, Worker } from '@temporalio/worker';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createHostActivities } from '../../activities/host-activities.ts';
import { hostName, hostTaskQueue, requestId } from '../../contracts/identity.ts';
import type { HostName, MigrationId, Role, VmName } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import { mib } from '../../contracts/units.ts';
import { projectRoot } from '../../lab/guest-image.ts';
import { namespaceBytes } from '../../lab/network/network.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import type { LabProcess } from '../../lab/processes.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import type { TlsMaterial } from '../../payloads/certificates.ts';
import { migrationOutcome, startMigration } from '../../payloads/migration-client.ts';
import { openRevocationList } from '../../payloads/revocation.ts';
import {
  connectTemporal, temporalConnectionOptions, workerDataConverter,
} from '../../payloads/temporal-connection.ts';
import type { TemporalTarget } from '../../payloads/temporal-connection.ts';
import { serveLedger } from '../../runners/ledger/server.ts';
import type { LedgerServer } from '../../runners/ledger/server.ts';
import { missingForLab } from '../support/lab-needs.ts';
import { completed, MoveStage, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';
import { FakeDatacentre } from '../workflows/support/fake-datacentre.ts';
import { quiet, Running } from '../workflows/support/workbench.ts';
import { missingForCluster, startCluster, temporalServer } from './production-servers.ts';

/** This is a command of its own: what is missing is a failure, not a skip. */
const missing = [...missingForLab(), ...missingForCluster()];
if (missing.length > 0) {
  throw new Error(`the production profile needs ${missing.join(', ')}: run npm run test:cluster`);
}
const rehearsal = 'stand-ins';
/** A control worker is back in 10 s on a quiet machine, the server in as many. */
const backMsMax = 120_000;
/** Guests, restarts of three processes, and the rest of the move at full speed. */
const testMsMax = 600_000;

let stage: MoveStage;
const papersDirectory = (): string => join(stage.lab.directories.data, 'certificates');
const issue = async (role: Role, name: string): Promise<TlsMaterial> => {
  const { certPath, keyPath, caPath } = await issueCertificate({
    dir: papersDirectory(), identity: { role, name }, addresses: ['127.0.0.1'], nowMs: Date.now(),
  });
  return { certPath, keyPath, caPath };
};
/** Temporal as this machine reaches it, with other papers or in another namespace. */
const temporalFor = (tls: TlsMaterial, namespace?: string): TemporalTarget => {
  const { temporal } = stage.services;
  return {
    ...temporal, namespace: namespace ?? temporal.namespace,
    tls: { ...tls, serverName: temporal.tls?.serverName ?? null },
  };
};

async function killServer(): Promise<LabProcess> {
  const server = stage.lab.process(temporalServer(stage.lab));
  if (server === null) throw new Error('the Temporal server does not run');
  await server.kill();
  return server;
}

/** The outcome, asked again while the server is away. */
const outcomeOf = (client: Client, migration: MigrationId) =>
  until(`${migration} ends`, () => migrationOutcome(client, migration).catch(() => null), testMsMax);

beforeAll(async () => {
  quiet();
  stage = await MoveStage.raise({
    hostCount: 3, controlCount: 2, profile: 'production',
    startTemporal: startCluster(['novacron', rehearsal]),
  });
}, testMsMax);
afterAll(() => stage?.lower(), testMsMax);

describe('the cluster', () => {
  it('refuses who has no certificate of its authority', async () => {
    const foreign = join(stage.lab.directories.data, 'foreign');
    mkdirSync(foreign);
    await createAuthority({ dir: foreign, nowMs: Date.now() });
    const stranger = await issueCertificate({
      dir: foreign, identity: { role: 'operator', name: 'stranger' }, addresses: [],
      nowMs: Date.now(),
    });
    const own = await issue('operator', 'somebody');
    const refused = { code: 'temporal/unreachable' };
    await expect(connectTemporal({ ...temporalFor(own), tls: null }, null))
      .rejects.toMatchObject(refused);
    await expect(connectTemporal(temporalFor({
      ...own, certPath: stranger.certPath, keyPath: stranger.keyPath,
    }), null)).rejects.toMatchObject(refused);
    const admitted = await connectTemporal(temporalFor(own), null);
    await admitted.connection.close();
  }, testMsMax);
});

describe('three real hosts', () => {
  let guest: StageGuest;
  beforeAll(async () => {
    guest = await stage.guest({ name: 'enduring', octet: 140, dataMib: 64 });
  }, testMsMax);

  /** Waits until the host has sent so many bytes more on the migration network. */
  async function untilWired(host: LabHost, bytes: number): Promise<void> {
    const sent = async (): Promise<number> =>
      (await namespaceBytes(host.namespace, host.migrationInterface))?.sentBytes ?? 0;
    const from = await sent();
    await until(`${host.name} sends ${bytes} bytes`, async () =>
      (await sent() - from >= bytes ? true : null), backMsMax);
  }

  it('move a guest while both control workers and the server are killed and come back', async () => {
    const [source, target] = [stage.lab.host(1), stage.lab.host(2)];
    const before = await guest.begin();
    const { migration } = await stage.move({
      vm: guest.vm, target: target.name,
      // 64 MiB take a minute at this limit, which is lifted when everything is back.
      policy: { bandwidthBytesPerSecond: 1_000_000, deadlineMs: testMsMax },
    });
    await stage.untilSent(migration);
    // One after the other: whichever held the workflow has been killed.
    for (const name of ['control', 'control-2']) await stage.killAndRestart(name);
    const server = await killServer();
    // Bytes do not wait for Temporal.
    await untilWired(source, 3 * mib);
    await stage.lab.start(server.spec);
    const view = await until('the move answers again', () =>
      stage.view(migration).catch(() => null), backMsMax);
    expect(view.status.outcome, 'the move is still under way').toBeNull();
    await until('a command is taken', () => stage.command(
      migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 }).catch(() => null), backMsMax);
    await completed(outcomeOf(stage.client, migration));
    await guest.expectAt(target, before, 1);
  }, testMsMax);

  it('move it on to the third', async () => {
    const before = await guest.begin();
    const target = stage.lab.host(3);
    const { migration } = await stage.move({ vm: guest.vm, target: target.name });
    await completed(outcomeOf(stage.client, migration));
    await guest.expectAt(target, before, 1);
  }, testMsMax);
});

describe('stand-ins for hosts', () => {
  const workers = new Running();
  const connections: NativeConnection[] = [];
  let centre: FakeDatacentre;
  let ledger: LedgerServer;
  let client: Client;
  let payloadKeysPath: string;
  const [hostA, hostB] = [hostName('host-a'), hostName('host-b')];

  async function startControl(name: string): Promise<LabProcess> {
    const tls = await issue('control', name);
    const path = join(stage.lab.directories.data, `${name}.json`);
    writeFileSync(path, JSON.stringify({
      version: 1, profile: 'production', buildId: 'stand-in-1', payloadKeysPath, tls,
      revokedPath: join(papersDirectory(), 'revoked.json'), metrics: null, codec: null,
      temporal: temporalFor(tls, rehearsal), ledger: { address: '127.0.0.1', port: ledger.port },
    }));
    return await stage.lab.start({
      name, namespace: null, ready: 'line',
      command: [process.execPath, join(projectRoot, 'runners/control/main.ts'), '--config', path],
    });
  }

  async function startHost(host: HostName): Promise<void> {
    const connection = await NativeConnection.connect(
      await temporalConnectionOptions(temporalFor(await issue('host', host), rehearsal)));
    connections.push(connection);
    workers.add(await Worker.create({
      connection, namespace: rehearsal, taskQueue: hostTaskQueue(host),
      activities: createHostActivities(centre.operations(host)),
      dataConverter: workerDataConverter(payloadKeysPath), shutdownGraceTime: 500,
    }));
  }

  beforeAll(async () => {
    ({ payloadKeysPath } = stage.services);
    centre = await FakeDatacentre.open(['host-a', 'host-b']);
    const tls = await issue('ledger', 'stand-in');
    ledger = await serveLedger({
      core: centre.ledger.core, address: '127.0.0.1', port: 0, tls,
      revoked: openRevocationList({
        path: join(papersDirectory(), 'revoked.json'), caPath: tls.caPath }),
      logger: pino({ level: 'silent' }),
    });
    await startControl('stand-in-control');
    for (const host of centre.hosts) await startHost(host);
    client = await connectTemporal(
      temporalFor(await issue('operator', 'stand-in'), rehearsal), payloadKeysPath);
  }, testMsMax);
  afterAll(async () => {
    await workers.stop();
    for (const connection of connections) await connection.close();
    await client?.connection.close();
    await ledger?.close();
    await centre?.close();
  }, testMsMax);

  /** A move whose source does `atSwitchover` after STOP, before anything is told to anybody. */
  async function moveThrough(name: string, atSwitchover: () => Promise<void>): Promise<VmName> {
    const vm = await centre.runningVm(name, hostA);
    centre.faults.set('switchover', atSwitchover);
    const { migration } = await startMigration(client, {
      version: 1, vm, target: hostB, request: requestId('r1'), policy: defaultPolicy,
    });
    const outcome = await outcomeOf(client, migration);
    expect(outcome).toMatchObject({ kind: 'completed' });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
    return vm;
  }
  const switchovers = (): number =>
    centre.calls.filter((call) => call.endsWith('switchover')).length;

  it('commit while the server is dead between STOP and the commit', async () => {
    let server: LabProcess | null = null;
    const moved = moveThrough('server-killed', async () => { server = await killServer(); });
    await until('the target runs it', () =>
      (centre.whereRuns('server-killed' as VmName).includes(hostB) ? true : null), backMsMax);
    // The commit went by the ledger; Temporal learns of it when it is back.
    expect(server).not.toBeNull();
    await stage.lab.start(temporalServer(stage.lab));
    await moved;
    expect(switchovers()).toBe(1);
  }, testMsMax);

  it('commit while the only control worker is dead, which learns of it afterwards', async () => {
    const control = stage.lab.process({
      name: 'stand-in-control', namespace: null, ready: 'line', command: [] });
    const moved = moveThrough('control-killed', async () => { await control?.kill(); });
    await until('the target runs it', () =>
      (centre.whereRuns('control-killed' as VmName).includes(hostB) ? true : null), backMsMax);
    expect(stage.lab.isRunning('stand-in-control')).toBe(false);
    await startControl('stand-in-control');
    await moved;
    expect(switchovers()).toBe(2);
  }, testMsMax);
});
