/**
 * The gate of shared volumes with everything real but a VM: novacron-volume on both ends, QEMU's
 * storage daemon behind the gate, qemu-io as the VMM. Whose writes pass is what is tested.
 */
import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import type { SharedVolume } from '../../contracts/runner.ts';
import { storageCommand, volumeProgram } from '../../lab/volumes.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import type { TlsMaterial } from '../../payloads/certificates.ts';
import { createRevocationList, openRevocationList } from '../../payloads/revocation.ts';
import { askVolumeGate } from '../../runners/gates/volume-gate.ts';

const missing = [
  ...(existsSync(volumeProgram) ? [] : ['novacron-volume is not built']),
  ...(spawnSync('qemu-storage-daemon', ['--version']).status === 0 ? [] : ['qemu-storage-daemon']),
];
const sizeBytes = 8 << 20;
const block = 65_536;
const vm = vmName('guarded');

async function until<T>(look: () => T | null | Promise<T | null>, what: string): Promise<T> {
  const end = Date.now() + 20_000;
  while (Date.now() < end) {
    const seen = await look();
    if (seen !== null) return seen;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`not in time: ${what}`);
}

/** One qemu-io that keeps its connection; its answers come in the order of its commands. */
class Client {
  readonly #child: ChildProcess;
  #text = '';

  constructor(socket: string, reconnectSeconds = 0) {
    this.#child = spawn('qemu-io', ['--cache', 'none', '--image-opts',
      `driver=nbd,server.type=unix,server.path=${socket},export=data`
      + `,reconnect-delay=${reconnectSeconds}`]);
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.on('data', (piece: Buffer) => { this.#text += piece.toString(); });
    }
  }

  async ask(command: string): Promise<string> {
    const from = this.#text.length;
    this.#child.stdin?.write(`${command}\n`);
    return until(() => {
      const said = this.#text.slice(from);
      return /ops;|failed|error|Pattern verification/i.test(said) ? said : null;
    }, command);
  }

  close(): void {
    this.#child.kill('SIGKILL');
  }
}

describe.runIf(missing.length === 0)('the gate of a shared volume', () => {
  const folder = mkdtempSync(join(tmpdir(), 'volume-gate-'));
  const image = join(folder, 'data.img');
  const children: ChildProcess[] = [];
  let papers: { host: TlsMaterial; operator: TlsMaterial };
  let revokedPath: string;
  let gate: ChildProcess;
  let volume: SharedVolume;

  const start = (command: readonly string[]): ChildProcess => {
    const [program = '', ...args] = command;
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(child);
    return child;
  };
  const startGate = async (port: number): Promise<number> => {
    const config = join(folder, 'gate.json');
    const { certPath, keyPath, caPath } = await issueCertificate({
      dir: folder, identity: { role: 'volume', name: 'store' }, addresses: ['127.0.0.1'],
      nowMs: Date.now(),
    });
    writeFileSync(config, JSON.stringify({
      version: 1, listen: { address: '127.0.0.1', port }, stateDir: folder,
      tls: { certPath, keyPath, caPath, revokedPath },
      volumes: [{ name: 'data', vm, socket: join(folder, 'nbd.sock') }],
    }));
    gate = start([volumeProgram, 'gate', '--config', config]);
    let said = '';
    gate.stdout?.on('data', (piece: Buffer) => { said += piece.toString(); });
    return until(() => {
      const line = said.split('\n').find((one) => one.includes('"ready"'));
      return line === undefined ? null : (JSON.parse(line) as { port: number }).port;
    }, 'the gate');
  };
  const link = async (name: string, epoch: number | 'view', of: string = vm): Promise<string> => {
    const socket = join(folder, `${name}.sock`);
    const config = join(folder, `${name}.json`);
    writeFileSync(join(folder, `${name}.epoch`), `${epoch}\n`);
    writeFileSync(config, JSON.stringify({
      version: 1, vm: of, volume: 'data', uid: 0, socket,
      server: { address: '127.0.0.1', port: volume.server.port },
      serverIdentity: 'novacron://volume/store', tls: { ...papers.host, revokedPath },
      epochPath: join(folder, `${name}.epoch`), recordPath: join(folder, `${name}.link.json`),
    }));
    start([volumeProgram, 'link', '--config', config]);
    await until(() => (existsSync(join(folder, `${name}.link.json`)) ? true : null), name);
    return socket;
  };
  const ask = (wish: 'raise' | 'look', epoch: number, material = papers.host): Promise<number> =>
    askVolumeGate({ wish, vm, volume, epoch }, {
      material, revoked: openRevocationList({ path: revokedPath, caPath: material.caPath }),
    });

  beforeAll(async () => {
    const nowMs = Date.now();
    await createAuthority({ dir: folder, nowMs });
    revokedPath = await createRevocationList({ dir: folder, nowMs });
    const issue = async (role: 'host' | 'operator'): Promise<TlsMaterial> => {
      const { certPath, keyPath, caPath } = await issueCertificate({
        dir: folder, identity: { role, name: 'one' }, addresses: [], nowMs });
      return { certPath, keyPath, caPath };
    };
    papers = { host: await issue('host'), operator: await issue('operator') };
    writeFileSync(image, Buffer.alloc(sizeBytes));
    start(storageCommand(join(folder, 'nbd.sock'), [{ name: 'data', path: image }]));
    await until(() => (existsSync(join(folder, 'nbd.sock')) ? true : null), 'the storage daemon');
    const port = await startGate(0);
    volume = {
      kind: 'shared', name: 'data', server: { name: 'store', address: '127.0.0.1', port },
    };
  }, 60_000);
  afterAll(() => {
    for (const child of children) child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  });

  it('lets exactly its own epoch write, and who waits for it read', async () => {
    const socket = await link('first', 1);
    expect(await ask('raise', 1)).toBe(1);
    const writer = new Client(socket);
    expect(await writer.ask(`write -P 1 0 ${block}`)).toMatch(/1 ops/);
    const eager = new Client(await link('next', 'view'));
    expect(await eager.ask(`read -P 1 0 ${block}`)).toMatch(/1 ops/);
    expect(await eager.ask(`write -P 9 0 ${block}`)).toMatch(/failed|error/i);
    eager.close();
    const next = new Client(join(folder, 'next.sock'), 10);
    expect(await next.ask(`read -P 1 0 ${block}`)).toMatch(/1 ops/);

    // Who waited comes back as the writer by itself; the one before is cut and stays out.
    writeFileSync(join(folder, 'next.epoch'), '2\n');
    expect(await ask('raise', 2)).toBe(2);
    expect(await writer.ask(`write -P 9 0 ${block}`)).toMatch(/failed|error/i);
    expect(await next.ask(`write -P 2 0 ${block}`)).toMatch(/1 ops/);
    expect(readFileSync(image).subarray(0, block).every((byte) => byte === 2)).toBe(true);
    const late = spawnSync('qemu-io', ['--image-opts', '-c', `write -P 9 0 ${block}`,
      `driver=nbd,server.type=unix,server.path=${join(folder, 'first.sock')},export=data`]);
    expect(late.status).not.toBe(0);
    expect(readFileSync(image)[0]).toBe(2);
    writer.close();
    next.close();
  }, 60_000);

  it('never falls, not by a late raise and not by a restart', async () => {
    await expect(ask('raise', 1)).rejects.toMatchObject({ code: 'ownership/refused' });
    gate.kill('SIGKILL');
    await until(() => (gate.signalCode === null ? null : true), 'the end of the gate');
    await expect(ask('look', 0)).rejects.toMatchObject({ code: 'preflight/volume' });
    await startGate(volume.server.port);
    expect(await ask('look', 0)).toBe(2);
    await expect(ask('raise', 1)).rejects.toMatchObject({ code: 'ownership/refused' });
    expect(await ask('raise', 2)).toBe(2);
    const again = new Client(join(folder, 'next.sock'));
    expect(await again.ask(`write -P 3 0 ${block}`)).toMatch(/1 ops/);
    again.close();
  }, 60_000);

  it('serves hosts only, and a volume to its own VM only', async () => {
    await expect(ask('raise', 3, papers.operator)).rejects
      .toMatchObject({ code: 'preflight/volume' });
    const foreign = spawnSync('qemu-io', ['--image-opts', '-c', 'read 0 512',
      `driver=nbd,server.type=unix,server.path=${await link('foreign', 5, 'other')},export=data`]);
    expect(foreign.status).not.toBe(0);
    expect(await ask('look', 0)).toBe(2);
  }, 60_000);
});

describe.runIf(missing.length > 0)('the gate of a shared volume', () => {
  it('is not tried here', () => { console.warn(`skipped: ${missing.join(', ')}`); });
});
