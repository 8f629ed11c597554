/**
 * The production profile: official Temporal server on PostgreSQL behind mutual TLS, two control
 * workers, three host runners' queues; a control worker and the server are restarted in mid-move.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Client } from '@temporalio/client';
import { NativeConnection, Worker } from '@temporalio/worker';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createHostActivities } from '../../activities/host-activities.ts';
import { hostName, hostTaskQueue, requestId } from '../../contracts/identity.ts';
import type { Role } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import { prepareNamespace } from '../../infra/temporal/namespace.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import type { IssuedFiles } from '../../payloads/certificates.ts';
import { migrationOutcome, startMigration } from '../../payloads/migration-client.ts';
import { createPayloadKeys } from '../../payloads/payload-keys.ts';
import { createRevocationList, openRevocationList } from '../../payloads/revocation.ts';
import {
  connectTemporal, temporalConnectionOptions, workerDataConverter,
} from '../../payloads/temporal-connection.ts';
import type { TemporalTarget } from '../../payloads/temporal-connection.ts';
import { serveLedger } from '../../runners/ledger/server.ts';
import type { LedgerServer } from '../../runners/ledger/server.ts';
import { FakeDatacentre } from '../workflows/support/fake-datacentre.ts';
import { Running } from '../workflows/support/workbench.ts';
import {
  applySchema, buildServer, endProcess, missingForCluster, serverLog, startPostgres, startServer,
  writeServerConfig,
} from './production-servers.ts';

const missing = missingForCluster();
if (missing !== null) console.warn(`skipped: the production profile needs ${missing}`);
const root = fileURLToPath(new URL('../..', import.meta.url));
const namespace = 'novacron';
const alreadyExists = 6;

describe.skipIf(missing !== null)('the production profile', () => {
  const folder = mkdtempSync(join(tmpdir(), 'novacron-cluster-'));
  const payloadKeysPath = join(folder, 'payload-keys.json');
  const workers = new Running();
  const controls: ChildProcess[] = [];
  let postgres: ChildProcess;
  let server: ChildProcess;
  let serverConfig: { readonly path: string; readonly port: number };
  let centre: FakeDatacentre;
  let ledger: LedgerServer;
  let revokedPath: string;
  let client: Client;

  const issue = (role: Role, name: string): Promise<IssuedFiles> => issueCertificate({
    dir: folder, identity: { role, name }, addresses: ['127.0.0.1', 'localhost'], nowMs: Date.now(),
  });
  const files = ({ certPath, keyPath, caPath }: IssuedFiles) => ({ certPath, keyPath, caPath });
  const target = (tls: IssuedFiles, of = namespace): TemporalTarget => ({
    address: `127.0.0.1:${serverConfig.port}`, namespace: of,
    tls: { ...files(tls), serverName: 'localhost' },
  });

  async function answering(tls: IssuedFiles): Promise<Client> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const found = await connectTemporal(target(tls), payloadKeysPath);
        try {
          await found.workflowService.registerNamespace({
            namespace, workflowExecutionRetentionPeriod: { seconds: 86_400 as never },
          });
        } catch (error) {
          if ((error as { code?: number }).code !== alreadyExists) throw error;
        }
        return found;
      } catch (error) {
        if (attempt > 120 || server.exitCode !== null) {
          throw new Error(serverLog(serverConfig.path), { cause: error });
        }
        await sleep(500);
      }
    }
  }

  async function startControl(name: string): Promise<ChildProcess> {
    const tls = await issue('control', name);
    const path = join(folder, `${name}.json`);
    writeFileSync(path, JSON.stringify({
      version: 1, profile: 'production', buildId: 'build-1', payloadKeysPath, revokedPath,
      tls: files(tls), temporal: target(tls), ledger: { address: '127.0.0.1', port: ledger.port },
      metrics: null, codec: null,
    }));
    const child = spawn(process.execPath, [join(root, 'runners/control/main.ts'), '--config', path], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    controls.push(child);
    const lines: string[] = [];
    await new Promise<void>((resolve, reject) => {
      createInterface({ input: child.stdout! }).on('line', (line) => {
        lines.push(line);
        if (line.includes('"msg":"ready"')) resolve();
      });
      child.once('exit', () => reject(new Error(lines.slice(-5).join('\n'))));
    });
    return child;
  }

  beforeAll(async () => {
    buildServer();
    // PostgreSQL's user has to reach its folder inside.
    chmodSync(folder, 0o711);
    const nowMs = Date.now();
    await createPayloadKeys(payloadKeysPath, nowMs);
    await createAuthority({ dir: folder, nowMs });
    revokedPath = await createRevocationList({ dir: folder, nowMs });
    const database = await startPostgres(folder);
    postgres = database.process;
    applySchema(database.port);
    serverConfig = await writeServerConfig({
      folder, postgresPort: database.port, tls: files(await issue('temporal', 'temporal-1')),
    });
    server = startServer(serverConfig.path);
    client = await answering(await issue('operator', 'op-1'));
    for (let attempt = 0; ; attempt += 1) {
      // A new namespace is known to every cache after ten seconds.
      try {
        await prepareNamespace(client);
        break;
      } catch (error) {
        if (attempt > 60) throw error;
        await sleep(500);
      }
    }
    centre = await FakeDatacentre.open();
    const ledgerTls = files(await issue('ledger', 'ledger-1'));
    ledger = await serveLedger({
      core: centre.ledger.core, address: '127.0.0.1', port: 0, tls: ledgerTls,
      revoked: openRevocationList({ path: revokedPath, caPath: ledgerTls.caPath }),
      logger: pino({ level: 'silent' }),
    });
    await startControl('control-1');
    await startControl('control-2');
    for (const host of centre.hosts) {
      const connection = await NativeConnection.connect(
        await temporalConnectionOptions(target(await issue('host', host))),
      );
      workers.add(await Worker.create({
        connection, namespace, taskQueue: hostTaskQueue(host),
        activities: createHostActivities(centre.operations(host)),
        dataConverter: workerDataConverter(payloadKeysPath), shutdownGraceTime: 500,
      }));
    }
  }, 900_000);

  afterAll(async () => {
    await Promise.all(controls.map((child) => endProcess(child, 'SIGTERM')));
    await workers.stop();
    await ledger?.close();
    await centre?.close();
    await client?.connection.close();
    if (server !== undefined) await endProcess(server, 'SIGTERM');
    if (postgres !== undefined) await endProcess(postgres, 'SIGINT');
    rmSync(folder, { recursive: true, force: true });
  }, 120_000);

  const [hostA, hostB] = [hostName('host-a'), hostName('host-b')];
  const move = async (name: string, copyMs: number) => {
    centre.copyMs = copyMs;
    const vm = await centre.runningVm(name, hostA);
    const { migration } = await startMigration(client, {
      version: 1, vm, target: hostB, request: requestId('r1'), policy: defaultPolicy,
    });
    return { vm, migration };
  };
  const copying = () => expect.poll(() => centre.sessions.size, { timeout: 30_000 }).toBe(1);
  const switchovers = (): number =>
    centre.calls.filter((call) => call.endsWith('switchover')).length;

  it('moves a VM', async () => {
    const { vm, migration } = await move('plain', 100);
    expect(await migrationOutcome(client, migration)).toMatchObject({ kind: 'completed' });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
  });

  it('refuses who has no certificate', async () => {
    await expect(connectTemporal({ ...target(await issue('operator', 'x')), tls: null }, null))
      .rejects.toThrow();
  });

  it('goes on when a control worker is killed and comes back', async () => {
    const before = switchovers();
    const { vm, migration } = await move('control-killed', 6_000);
    await copying();
    await endProcess(controls[0]!, 'SIGKILL');
    await sleep(1_000);
    await startControl('control-1');
    expect(await migrationOutcome(client, migration)).toMatchObject({ kind: 'completed' });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
    expect(switchovers()).toBe(before + 1);
  });

  it('goes on when the server is killed and comes back', async () => {
    const before = switchovers();
    const { vm, migration } = await move('server-killed', 8_000);
    await copying();
    await endProcess(server, 'SIGKILL');
    await sleep(2_000);
    server = startServer(serverConfig.path);
    await client.connection.close();
    client = await answering(await issue('operator', 'op-1'));
    let outcome: unknown = null;
    for (let attempt = 0; outcome === null && attempt < 60; attempt += 1) {
      outcome = await migrationOutcome(client, migration).catch(() => null);
      if (outcome === null) await sleep(1_000);
    }
    expect(outcome).toMatchObject({ kind: 'completed' });
    expect(centre.whereRuns(vm)).toEqual([hostB]);
    expect(switchovers()).toBe(before + 1);
  });
});
