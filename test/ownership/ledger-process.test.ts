/** The ledger's program as an operator runs it: serve, kill, backup, restore, verify, dump. */
import { execFile, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { Identity } from '../../contracts/identity.ts';
import type { Ledger } from '../../contracts/ownership.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { createRevocationList, openRevocationList } from '../../payloads/revocation.ts';
import { connectLedger } from '../../payloads/ledger-client.ts';
import { asHost, control, hostA, hostB, must, runningVm, vm } from '../support/ledger-fixtures.ts';
import type { LedgerSeats } from '../support/ledger-fixtures.ts';

vi.setConfig({ hookTimeout: 60_000 });

const main = fileURLToPath(new URL('../../runners/ledger/main.ts', import.meta.url));
const run = promisify(execFile);
let dir: string;
let caDir: string;
const open: { close(): Promise<void> }[] = [];
const children: ChildProcess[] = [];

async function configFor(name: string): Promise<string> {
  const tls = await issueCertificate({
    dir: caDir, identity: { role: 'ledger', name: 'ledger' }, addresses: [], nowMs: Date.now(),
    outDir: dir,
  });
  const path = join(dir, `${name}.json`);
  await writeFile(path, JSON.stringify({
    version: 1, profile: 'lab', stateDir: join(dir, name), listen: { address: '127.0.0.1', port: 0 },
    tls: { certPath: tls.certPath, keyPath: tls.keyPath, caPath: tls.caPath },
    revokedPath: join(caDir, 'revoked.json'), metrics: { address: '127.0.0.1', port: 0 },
  }));
  return path;
}
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-ledger-process-'));
  caDir = join(dir, 'ca');
  await createAuthority({ dir: caDir, nowMs: Date.now() });
  await createRevocationList({ dir: caDir, nowMs: Date.now() });
});
afterAll(async () => {
  for (const one of open) await one.close();
  for (const child of children) child.kill('SIGKILL');
  await rm(dir, { recursive: true, force: true });
});

async function serve(config: string) {
  const child = spawn(process.execPath, [main, 'serve', '--config', config], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  const exited = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
  const lines = createInterface({ input: child.stdout });
  const ready = await new Promise<{ address: string; port: number; metricsPort: number }>(
    (resolve, reject) => {
      lines.on('line', (line) => {
        const parsed = JSON.parse(line);
        if (parsed.msg === 'ready') resolve(parsed);
      });
      void exited.then((code) => reject(new Error(`exit ${code}`)));
    });
  return { child, exited, ready };
}

async function seatsAt(port: number): Promise<LedgerSeats & { close(): Promise<void> }> {
  const clients = new Map<string, Ledger>();
  for (const identity of [control, asHost(hostA), asHost(hostB)]) {
    const tls = await issueCertificate({ dir: caDir, identity, addresses: [], nowMs: Date.now(), outDir: dir });
    const revoked = openRevocationList({ path: join(caDir, 'revoked.json'), caPath: tls.caPath });
    clients.set(`${identity.role}/${identity.name}`, connectLedger({ address: '127.0.0.1', port, tls, revoked }));
  }
  const seats = {
    as: ({ role, name }: Identity) => clients.get(`${role}/${name}`) as Ledger,
    close: async () => { for (const client of clients.values()) await client.close(); },
  };
  open.push(seats);
  return seats;
}

describe('the program', () => {
  test('what was answered survives SIGKILL; SIGTERM ends it cleanly; figures are served', async () => {
    const config = await configFor('killed');
    const first = await serve(config);
    const seats = await seatsAt(first.ready.port);
    await runningVm(seats);
    const metrics = await (await fetch(`http://127.0.0.1:${first.ready.metricsPort}/metrics`)).text();
    expect(metrics).toMatch(/novacron_ledger_vms\{[^}]*\} 1\n/);
    expect((await fetch(`http://127.0.0.1:${first.ready.metricsPort}/healthz`)).status).toBe(200);
    let answered = 0;
    const writing = (async () => {
      for (let n = 0; n < 10_000; n += 1) {
        const [verdict] = await seats.as(control).propose([
          { kind: 'desire', vm, epoch: 1, desired: n % 2 === 0 ? 'stopped' : 'running' },
        ]);
        if (verdict?.accepted) answered = verdict.index;
      }
    })().catch(() => {});
    await expect.poll(() => answered, { timeout: 20_000 }).toBeGreaterThan(20);
    first.child.kill('SIGKILL');
    await first.exited;
    await seats.close();
    await writing;
    const second = await serve(config);
    const { stdout } = await run(process.execPath, [main, 'dump', '--json', '--config', config]);
    expect(JSON.parse(stdout).index).toBeGreaterThanOrEqual(answered);
    // A second one on the same directory has to keep away.
    await expect(run(process.execPath, [main, 'serve', '--config', config]))
      .rejects.toThrow(/in use by process/);
    second.child.kill('SIGTERM');
    expect(await second.exited).toBe(0);
    expect(await readdir(join(dir, 'killed'))).not.toContain('lock');
  }, 90_000);

  test('backup while it runs, restore elsewhere, verify', async () => {
    const config = await configFor('kept');
    const { child, exited, ready } = await serve(config);
    const seats = await seatsAt(ready.port);
    await runningVm(seats);
    const backup = join(dir, 'backup');
    const made = JSON.parse((await run(process.execPath, [main, 'backup', '--config', config, '--to', backup])).stdout);
    expect(made.index).toBe(5);
    await must(seats.as(control).propose([{ kind: 'desire', vm, epoch: 1, desired: 'stopped' }]));
    await seats.close();
    child.kill('SIGTERM');
    expect(await exited).toBe(0);
    const elsewhere = await configFor('elsewhere');
    const restore = ['restore', '--config', elsewhere, '--from', backup];
    await expect(run(process.execPath, [main, ...restore])).rejects.toThrow(/--complete or --rolled-back/);
    await run(process.execPath, [main, ...restore, '--rolled-back']);
    await expect(run(process.execPath, [main, ...restore, '--complete'])).rejects.toThrow(/not empty/);
    const report = JSON.parse((await run(process.execPath, [main, 'verify', '--config', elsewhere])).stdout);
    expect(report).toMatchObject({ problems: [], vmCount: 1, hostCount: 2 });
    const { stdout } = await run(process.execPath, [main, 'dump', '--config', elsewhere]);
    expect(stdout).toContain('vm vm-1 owned epoch 1000001 owner host-a desired stopped');
  }, 90_000);

  test('a wrong configuration is named', async () => {
    const path = join(dir, 'wrong.json');
    await writeFile(path, '{"version": 1}');
    await expect(run(process.execPath, [main, 'serve', '--config', path])).rejects.toThrow(/stateDir/);
  }, 90_000);
});
