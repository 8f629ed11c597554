/**
 * The processes as they are started in a lab: development server behind its TLS front, ledger,
 * control worker, codec endpoint; each with its own certificate.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:https';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { defaultPayloadConverter } from '@temporalio/common';
import { NativeConnection, Worker } from '@temporalio/worker';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createHostActivities } from '../../activities/host-activities.ts';
import { hostName, hostTaskQueue, requestId } from '../../contracts/identity.ts';
import type { Role } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import type { IssuedFiles } from '../../payloads/certificates.ts';
import { startMigration } from '../../payloads/migration-client.ts';
import { createPayloadCodec } from '../../payloads/payload-codec.ts';
import { createPayloadKeys, openPayloadKeys } from '../../payloads/payload-keys.ts';
import {
  createRevocationList, openRevocationList, revokeCertificates,
} from '../../payloads/revocation.ts';
import {
  connectTemporal, temporalConnectionOptions, workerDataConverter,
} from '../../payloads/temporal-connection.ts';
import type { TemporalTarget } from '../../payloads/temporal-connection.ts';
import { serveLedger } from '../../runners/ledger/server.ts';
import type { LedgerServer } from '../../runners/ledger/server.ts';
import { FakeDatacentre } from './support/fake-datacentre.ts';
import { findOnPath, Running } from './support/workbench.ts';

const temporalPath = findOnPath('temporal');
if (temporalPath === null) console.warn('skipped: the process tests need temporal on PATH');
const folder = mkdtempSync(join(tmpdir(), 'novacron-processes-'));
const root = fileURLToPath(new URL('../..', import.meta.url));
const payloadKeysPath = join(folder, 'payload-keys.json');
const children: ChildProcess[] = [];

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve));
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  return port;
}

/** Starts a program of ours and waits for its line with msg "ready". */
async function start(program: string, config: object): Promise<ChildProcess> {
  const path = join(folder, `${program.replaceAll('/', '-')}.json`);
  writeFileSync(path, JSON.stringify(config));
  const child = spawn(process.execPath, [join(root, program), '--config', path], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.push(child);
  const lines: string[] = [];
  createInterface({ input: child.stderr! }).on('line', (line) => lines.push(line));
  await new Promise<void>((resolve, reject) => {
    createInterface({ input: child.stdout! }).on('line', (line) => {
      lines.push(line);
      if (line.includes('"msg":"ready"')) resolve();
    });
    child.once('exit', () => reject(new Error(`${program} ended: ${lines.slice(-5).join('\n')}`)));
  });
  return child;
}
const ended = (child: ChildProcess): Promise<number | null> =>
  child.exitCode !== null ? Promise.resolve(child.exitCode)
    : new Promise((resolve) => child.once('exit', resolve));

describe.skipIf(temporalPath === null)('processes', () => {
  let centre: FakeDatacentre;
  let ledger: LedgerServer;
  let front: number;
  let codecPort: number;
  let server: ChildProcess;
  let control: ChildProcess;
  let revokedPath: string;
  const workers = new Running();
  const issue = (role: Role, name: string): Promise<IssuedFiles> => issueCertificate({
    dir: folder, identity: { role, name }, addresses: ['127.0.0.1'], nowMs: Date.now(),
  });
  const files = ({ certPath, keyPath, caPath }: IssuedFiles) => ({ certPath, keyPath, caPath });
  const target = (tls: IssuedFiles | null): TemporalTarget => ({
    address: `127.0.0.1:${front}`, namespace: 'novacron',
    tls: tls === null ? null : { ...files(tls), serverName: null },
  });

  beforeAll(async () => {
    const nowMs = Date.now();
    await createPayloadKeys(payloadKeysPath, nowMs);
    await createAuthority({ dir: folder, nowMs });
    revokedPath = await createRevocationList({ dir: folder, nowMs });
    centre = await FakeDatacentre.open(['host-a', 'host-b']);
    const ledgerTls = files(await issue('ledger', 'ledger-1'));
    ledger = await serveLedger({
      core: centre.ledger.core, address: '127.0.0.1', port: 0, tls: ledgerTls,
      revoked: openRevocationList({ path: revokedPath, caPath: ledgerTls.caPath }),
      logger: pino({ level: 'silent' }),
    });
    front = await freePort();
    codecPort = await freePort();
    server = await start('infra/temporal/dev-server.ts', {
      version: 1, temporalPath, databasePath: join(folder, 'temporal.db'), namespace: 'novacron',
      port: await freePort(), uiPort: await freePort(), codecEndpoint: null,
      front: {
        listen: { address: '127.0.0.1', port: front }, revokedPath,
        tls: files(await issue('temporal', 'temporal-1')),
      },
    });
    const controlTls = await issue('control', 'control-1');
    control = await start('runners/control/main.ts', {
      version: 1, profile: 'lab', buildId: 'build-1', payloadKeysPath, revokedPath,
      tls: files(controlTls), temporal: target(controlTls),
      ledger: { address: '127.0.0.1', port: ledger.port },
      metrics: { address: '127.0.0.1', port: await freePort() },
      codec: { listen: { address: '127.0.0.1', port: codecPort }, origins: ['http://localhost:8233'] },
    });
    for (const host of centre.hosts) {
      const connection = await NativeConnection.connect(
        await temporalConnectionOptions(target(await issue('host', host))),
      );
      workers.add(await Worker.create({
        connection, namespace: 'novacron', taskQueue: hostTaskQueue(host),
        activities: createHostActivities(centre.operations(host)),
        dataConverter: workerDataConverter(payloadKeysPath), shutdownGraceTime: 500,
      }));
    }
  }, 120_000);
  afterAll(async () => {
    await workers.stop();
    for (const child of children) if (child.exitCode === null) child.kill('SIGTERM');
    await Promise.all(children.map(ended));
    await ledger?.close();
    await centre?.close();
    rmSync(folder, { recursive: true, force: true });
  }, 60_000);

  it('moves a VM through the TLS front', async () => {
    const client = await connectTemporal(target(await issue('operator', 'op-1')), payloadKeysPath);
    const vm = await centre.runningVm('db', hostName('host-a'));
    const { handle } = await startMigration(client, {
      version: 1, vm, target: hostName('host-b'), request: requestId('r1'), policy: defaultPolicy,
    });
    expect(await handle.result()).toMatchObject({ kind: 'completed' });
    expect((await client.schedule.getHandle('novacron-sweep-migrations').describe()).scheduleId)
      .toBe('novacron-sweep-migrations');
    await client.connection.close();
  });

  it('refuses plain text, another role, and a revoked certificate', async () => {
    const other = await issue('ledger', 'ledger-2');
    const gone = await issue('operator', 'op-2');
    await revokeCertificates({
      dir: folder, nowMs: Date.now(), of: { identity: 'operator/op-2' }, reason: 'test',
    });
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    // Each is tried again until the client's own patience ends, after ten seconds.
    await Promise.all([null, other, gone].map((papers) =>
      expect(connectTemporal(target(papers), payloadKeysPath)).rejects.toThrow()));
  }, 60_000);

  it('decodes payloads for operators and for nobody else', async () => {
    const [sealed] = await createPayloadCodec(openPayloadKeys(payloadKeysPath)).encode([
      defaultPayloadConverter.toPayload({ vm: 'db' }),
    ]);
    const body = JSON.stringify({ payloads: [{
      metadata: Object.fromEntries(Object.entries(sealed?.metadata ?? {}).map(
        ([name, value]) => [name, Buffer.from(value ?? []).toString('base64')],
      )),
      data: Buffer.from(sealed?.data ?? []).toString('base64'),
    }] });
    const ask = (tls: IssuedFiles | null) => new Promise<string>((resolve, reject) => {
      const call = request({
        host: '127.0.0.1', port: codecPort, path: '/decode', method: 'POST',
        ca: readFileSync(join(folder, 'ca.pem')),
        ...(tls === null ? {} : { cert: readFileSync(tls.certPath), key: readFileSync(tls.keyPath) }),
      }, (response) => {
        let text = '';
        response.on('data', (part: Buffer) => { text += part.toString(); });
        response.on('end', () => resolve(`${response.statusCode} ${text}`));
      });
      call.on('error', reject);
      call.end(body);
    });
    const answer = await ask(await issue('operator', 'op-3'));
    expect(answer.startsWith('200 ')).toBe(true);
    const { payloads } = JSON.parse(answer.slice(4)) as { payloads: { data: string }[] };
    expect(Buffer.from(payloads[0]?.data ?? '', 'base64').toString()).toBe('{"vm":"db"}');
    expect(await ask(await issue('host', 'host-z'))).toMatch(/^403/);
    await expect(ask(null)).rejects.toThrow();
  });

  it('end on SIGTERM', async () => {
    control.kill('SIGTERM');
    expect(await ended(control)).toBe(0);
    await workers.stop();
    server.kill('SIGTERM');
    expect(await ended(server)).toBe(0);
  }, 60_000);
});
