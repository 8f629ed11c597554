/** The control worker as a function: invoked again and again, a move outlives its invocations. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hostName, requestId } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { startMigration } from '../../payloads/migration-client.ts';
import { createPayloadKeys } from '../../payloads/payload-keys.ts';
import { createRevocationList, openRevocationList } from '../../payloads/revocation.ts';
import { makeCurrent } from '../../runners/control/deployment.ts';
import { workflowBundle } from '../../runners/control/workflow-bundle.ts';
import { serveLedger } from '../../runners/ledger/server.ts';
import type { LedgerServer } from '../../runners/ledger/server.ts';
import { FakeDatacentre } from './support/fake-datacentre.ts';
import { devServerBench, hostWorker, Running } from './support/workbench.ts';

const execute = promisify(execFile);
const folder = mkdtempSync(join(tmpdir(), 'novacron-lambda-'));
const payloadKeysPath = join(folder, 'payload-keys.json');
await createPayloadKeys(payloadKeysPath, Date.now());
const bench = await devServerBench({ payloadKeysPath });
if (bench.env === null) console.warn(`skipped: the function's test needs ${bench.missing}`);
const buildId = 'function-1';
const invoker = fileURLToPath(new URL('support/invoke-lambda.ts', import.meta.url));
const configPath = join(folder, 'control.json');

interface Invocation {
  readonly workedMs: number;
  readonly leftMs: number;
}
async function invoke(deadlineMs: number): Promise<Invocation> {
  const { stdout } = await execute(process.execPath, [invoker, String(deadlineMs), buildId], {
    env: { ...process.env, NOVACRON_CONFIG: configPath }, timeout: deadlineMs + 60_000,
  });
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as Invocation;
}

describe.skipIf(bench.env === null)('the control worker as a function', () => {
  const env = bench.env!;
  let centre: FakeDatacentre;
  let ledger: LedgerServer;
  const workers = new Running();

  beforeAll(async () => {
    await workflowBundle();
    centre = await FakeDatacentre.open(['host-a', 'host-b']);
    const nowMs = Date.now();
    await createAuthority({ dir: folder, nowMs });
    const revokedPath = await createRevocationList({ dir: folder, nowMs });
    const issue = (role: 'ledger' | 'control', name: string) => issueCertificate({
      dir: folder, identity: { role, name }, addresses: ['127.0.0.1'], nowMs,
    });
    const { certPath, keyPath, caPath } = await issue('ledger', 'ledger-1');
    const tls = { certPath, keyPath, caPath };
    ledger = await serveLedger({
      core: centre.ledger.core, address: '127.0.0.1', port: 0, tls,
      revoked: openRevocationList({ path: revokedPath, caPath }), logger: pino({ level: 'silent' }),
    });
    const control = await issue('control', 'control-1');
    writeFileSync(configPath, JSON.stringify({
      version: 1, profile: 'lab', metrics: null, codec: null, buildId, payloadKeysPath, revokedPath,
      tls: { certPath: control.certPath, keyPath: control.keyPath, caPath: control.caPath },
      temporal: { address: env.address, namespace: env.namespace ?? 'default', tls: null },
      ledger: { address: '127.0.0.1', port: ledger.port }, logLevel: 'warn',
    }));
    for (const host of centre.hosts) {
      workers.add(await hostWorker({ env, centre, payloadKeysPath }, host));
    }
  }, 120_000);
  afterAll(async () => {
    await workers.stop();
    await ledger?.close();
    await centre?.close();
    await env.teardown();
    rmSync(folder, { recursive: true, force: true });
  });

  it('ends inside its deadline, and a move outlives five invocations', async () => {
    const [source, target] = [hostName('host-a'), hostName('host-b')];
    const vm = await centre.runningVm('db', source);
    const deadlineMs = 7_000;
    const first = invoke(deadlineMs);
    await makeCurrent(env.client, { deploymentName: 'novacron-control', buildId }, 'always');
    centre.copyMs = 60_000;
    const { handle } = await startMigration(env.client, {
      version: 1, vm, target, request: requestId('r1'), policy: defaultPolicy,
    });
    const invocations = [await first];
    while (invocations.length < 5) invocations.push(await invoke(deadlineMs));
    expect((await handle.describe()).status.name).toBe('RUNNING');
    expect(centre.whereRuns(vm)).toEqual([source]);
    // The copy goes on between and after invocations; its end needs one more.
    for (const session of centre.sessions.values()) session.copyMs = 0;
    let outcome: unknown = null;
    const waiting = handle.result().then((result) => { outcome = result; });
    while (outcome === null && invocations.length < 12) invocations.push(await invoke(deadlineMs));
    await waiting;
    expect(outcome).toMatchObject({ kind: 'completed' });
    expect(invocations.length).toBeGreaterThan(5);
    expect(centre.whereRuns(vm)).toEqual([target]);
    for (const { leftMs } of invocations) expect(leftMs).toBeGreaterThan(0);
    console.log(`invocations: ${JSON.stringify(invocations)}`);
  }, 240_000);
});
