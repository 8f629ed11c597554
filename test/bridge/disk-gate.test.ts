/**
 * The epoch gate of a VM down to its disks: the file in the host's state directory, the addon's NBD
 * gates, a real qemu-nbd behind them and qemu-io as the writer of a source that should have ended.
 */
import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import { mib } from '../../contracts/units.ts';
import { projectRoot } from '../../lab/guest-image.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { openMemoryEngine } from '../../runners/data-plane/memory-engine.ts';
import type {
  LaneListener, LaneTls, SourceSession, TargetSession,
} from '../../runners/data-plane/sessions.ts';
import { HostGates } from '../../runners/host/vm-gates.ts';
import { tellSkipped } from '../support/lab-needs.ts';

const lacking = [
  ...(existsSync(join(projectRoot, 'native/generated/novacron.linux-x64-gnu.node'))
    ? [] : ['the native addon']),
  ...['qemu-nbd', 'qemu-io', 'qemu-img']
    .filter((program) => spawnSync(program, ['--version']).status !== 0),
];
const vm = vmName('web');
const blockBytes = 65_536;
/** The writer writes this over and over; the disk starts with zeros. */
const pattern = 0x5a;

/** Tries until it is so; a busy machine takes longer, never for ever. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const end = performance.now() + 30_000; performance.now() < end;) {
    if (isSo()) return;
    await sleep(20);
  }
  throw new Error(`it did not come to pass: ${what}`);
}

describe.skipIf(lacking.length > 0)('a raised gate', () => {
  const dir = mkdtempSync(join(tmpdir(), 'nc-gate-'));
  const image = join(dir, 'disk.img');
  const nbdSocket = join(dir, 'nbd.sock');
  const sourceSocket = join(dir, 'source.sock');
  const uri = `nbd+unix:///?socket=${sourceSocket}`;
  const children: ChildProcess[] = [];
  let tls: readonly [LaneTls, LaneTls];
  let listener: LaneListener;

  beforeAll(async () => {
    const nowMs = Date.now();
    await createAuthority({ dir, nowMs });
    const issue = async (name: string): Promise<LaneTls> => ({
      ...await issueCertificate({
        dir, identity: { role: 'host', name: hostName(name) }, addresses: [], nowMs,
      }),
      revokedSerials: [],
    });
    tls = [await issue('h1'), await issue('h2')];
    for (const name of ['ram-h1', 'ram-h2']) {
      writeFileSync(join(dir, name), '');
      truncateSync(join(dir, name), 16 * mib);
    }
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', image, '64M']);
    const server = spawn(
      'qemu-nbd', ['-t', '-e', '8', '-f', 'raw', '-k', nbdSocket, image], { stdio: 'ignore' });
    children.push(server);
    await until('qemu-nbd listens', () => existsSync(nbdSocket));
    listener = openMemoryEngine().openListener({ address: '127.0.0.1', port: 0, tls: tls[1] });
  }, 60_000);
  afterAll(async () => {
    await listener?.close();
    for (const child of children) child.kill('SIGKILL');
    rmSync(dir, { recursive: true, force: true });
  });

  /** Gates as the runner of `host` has them; their epoch survives in the directory. */
  const gatesOf = (host: string) => new HostGates({
    raiseVolume: () => Promise.resolve(),
    nicGate: { admit: () => Promise.resolve(), shut: () => Promise.resolve() },
    hypervisor: {
      spec: () => Promise.resolve({ nics: [], disks: [], failover: 'none' }),
      tapName: () => 't',
    } as unknown as ConstructorParameters<typeof HostGates>[0]['hypervisor'],
    leases: { bind: () => Promise.resolve(), leftMs: () => Promise.resolve(0) },
    epochPath: () => join(dir, `epoch-${host}.json`),
    log: pino({ level: 'silent' }),
  }).of(vm);

  async function openSessions(
    migration: string, epoch: number,
  ): Promise<{ source: SourceSession; target: TargetSession }> {
    const target = listener.expect({
      migration, epoch, sourceIdentity: 'novacron://host/h1', memoryPath: join(dir, 'ram-h2'),
      memoryBytes: 16 * mib, vmmPid: process.pid, deviceStateSocket: join(dir, 'in.sock'),
      disks: [{ nbdSocket, exportName: '' }], postCopyAllowed: false, balloon: false,
      adopted: false,
      exactness: 'off', planted: null,
    });
    const source = openMemoryEngine().openSource({
      migration, epoch,
      target: { address: '127.0.0.1', port: listener.port, identity: 'novacron://host/h2' },
      laneCount: 1, tls: tls[0], memoryPath: join(dir, 'ram-h1'), memoryBytes: 16 * mib,
      vmmPid: process.pid, deviceStateSocket: join(dir, 'out.sock'),
      disks: [{ socket: sourceSocket }], socketUid: null, bandwidthBytesPerSecond: 0,
      downtimeBudgetMs: 100, postCopy: false, balloon: false, deadlineMs: 60_000,
      exactness: 'off', planted: null,
    });
    await source.connect();
    return { source, target };
  }

  /** Writes the pattern from the start of the disk on until it is cut off. */
  function startWriter(): { child: ChildProcess; ended: Promise<number | null> } {
    const child = spawn('qemu-img', [
      'bench', '-w', '-t', 'none', '-f', 'raw', '-c', '2000000', '-d', '8',
      '-s', String(blockBytes), `--pattern=${pattern}`, uri,
    ], { stdio: 'ignore' });
    children.push(child);
    const ended = new Promise<number | null>((resolve) => {
      child.once('exit', (code) => resolve(code));
    });
    return { child, ended };
  }
  const writesOnce = (): boolean =>
    spawnSync('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', uri], { timeout: 30_000 }).status === 0;

  test('at the target: no write of the old epoch lands after it', async () => {
    const { source, target } = await openSessions('migrate/web/1', 1);
    const gates = await gatesOf('h2');
    const pass = gates.enter(1, target);
    const writer = startWriter();
    await until('the writer writes', () => (target.snapshot().ioSequence[0] ?? 0) > 50);
    await gates.raise(2);
    expect(JSON.parse(readFileSync(join(dir, 'epoch-h2.json'), 'utf8')))
      .toEqual({ version: 1, epoch: 2 });
    // What it wrote before is wiped; whatever of it still came would be seen.
    const [applied] = target.snapshot().ioSequence;
    writeFileSync(image, Buffer.alloc(64 * mib));
    expect(await writer.ended).not.toBe(0);
    expect(writesOnce()).toBe(false);
    await sleep(300);
    expect(target.snapshot().ioSequence[0]).toBe(applied);
    expect(readFileSync(image).every((byte) => byte === 0)).toBe(true);
    pass.leave();
    await source.close();
    await target.close();
  }, 120_000);

  test('and it stays so for a runner that starts again: the epoch is on disk', async () => {
    const gates = await gatesOf('h2');
    const { source, target } = await openSessions('migrate/web/2', 1);
    expect(() => gates.enter(1, target)).toThrow(/ownership\/refused/);
    await target.close();
    await source.close();
    const next = await openSessions('migrate/web/3', 2);
    const pass = gates.enter(2, next.target);
    expect(writesOnce()).toBe(true);
    pass.leave();
    await next.source.close();
    await next.target.close();
  }, 120_000);

  test('at the source: its old stream ends, also towards a target that is silent', async () => {
    const { source, target } = await openSessions('migrate/web/4', 2);
    const gates = await gatesOf('h1');
    const pass = gates.enter(2, source);
    const writer = startWriter();
    await until('the writer writes', () => (source.snapshot().ioSequence[0] ?? 0) > 50);
    // The server stands still: its answers prove nothing any more, and nobody may wait for them.
    children[0]?.kill('SIGSTOP');
    try {
      await gates.raise(4);
      expect(await writer.ended).not.toBe(0);
      expect(writesOnce()).toBe(false);
    } finally {
      children[0]?.kill('SIGCONT');
    }
    pass.leave();
    await source.close();
    await target.close();
  }, 120_000);
});

describe.runIf(lacking.length > 0)('a raised gate', () => {
  test('is not tried here', () => tellSkipped('the gate in front of disks', lacking));
});
