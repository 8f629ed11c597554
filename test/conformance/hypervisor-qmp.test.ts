/** What every VMM behind our QMP client must do: the fake and the real ones pass the same suite. */
import { spawn } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import {
  cancelMirror,
  closeExports,
  finishMirror,
  flushDisks,
  mirrorProgress,
  openExports,
  setMirrorSpeed,
  startMirror,
  switchToWriteBlocking,
  waitMirrorDrained,
  waitMirrorReady,
} from '../../runners/hypervisor/disk-mirror.ts';
import type { QemuBinary } from '../../runners/hypervisor/qemu-binary.ts';
import { QmpClient } from '../../runners/hypervisor/qmp/client.ts';
import { FakeVmm } from '../../runners/hypervisor/qmp/fake-vmm.ts';
import { VmMonitor } from '../../runners/hypervisor/vm-monitor.ts';
import { probeQemu10, qemu7 } from '../e2e/hypervisor-bench.ts';

const diskBytes = 1 << 20;

/** A VMM with one disk `disk-root`, paused or incoming; `die` is sudden. */
interface Vmm {
  readonly die: () => void;
}
interface Kind {
  readonly name: string;
  readonly major: number;
  start(options: { directory: string; id: string; incoming: boolean }): Promise<Vmm>;
}

const fakeKind = (version: readonly [number, number, number]): Kind => ({
  name: `fake ${version[0]}.${version[1]}`,
  major: version[0],
  start: async ({ directory, id, incoming }) => {
    const fake = await FakeVmm.start({
      socketPath: join(directory, `${id}.qmp`),
      version,
      incoming,
      disks: { 'disk-root': diskBytes },
    });
    return { die: () => fake.close() };
  },
});

const realKind = (qemu: QemuBinary): Kind => ({
  name: `QEMU ${qemu.version}`,
  major: Number(qemu.version.split('.')[0]),
  start: async ({ directory, id, incoming }) => {
    const image = join(directory, `${id}.img`);
    writeFileSync(image, Buffer.alloc(diskBytes, id));
    const [program = '', ...before] = qemu.command;
    const json = (value: unknown): string => JSON.stringify(value);
    const child = spawn(
      program,
      [
        ...before,
        '-nodefaults',
        '-no-user-config',
        '-display',
        'none',
        '-vga',
        'none',
        '-S',
        '-accel',
        'tcg',
        '-cpu',
        'qemu64',
        '-m',
        '32M',
        '-machine',
        'pc-i440fx-7.2,memory-backend=ram0',
        '-object',
        json({
          'qom-type': 'memory-backend-file',
          id: 'ram0',
          share: true,
          size: 32 << 20,
          'mem-path': join(directory, `${id}.ram`),
        }),
        '-blockdev',
        json({ driver: 'file', 'node-name': 'file-root', filename: image }),
        '-blockdev',
        json({ driver: 'raw', 'node-name': 'disk-root', file: 'file-root' }),
        '-device',
        json({ driver: 'virtio-blk-pci', drive: 'disk-root' }),
        '-qmp',
        `unix:${join(directory, `${id}.qmp`)},server=on,wait=off`,
        ...(incoming ? ['-incoming', 'defer'] : []),
      ],
      { stdio: 'ignore', env: { ...process.env, ...qemu.environment } },
    );
    const until = Date.now() + 15_000;
    while (!existsSync(join(directory, `${id}.qmp`)) && Date.now() < until) {
      await new Promise((resolve) => {
        setTimeout(resolve, 10);
      });
    }
    return { die: () => child.kill('SIGKILL') };
  },
});

const seven = await qemu7().catch(() => null);
const ten = await probeQemu10();
if (seven === null)
  console.warn('QMP conformance of the real QEMU is skipped: qemu-system-x86_64 missing');
if (ten === null)
  console.warn('QMP conformance of QEMU 10 is skipped: .cache/qemu-10/qemu.json missing');
const kinds: readonly Kind[] = [
  fakeKind([7, 2, 22]),
  fakeKind([10, 0, 13]),
  ...(seven === null ? [] : [realKind(seven)]),
  ...(ten === null ? [] : [realKind(ten)]),
];

describe.each(kinds)('$name', (kind) => {
  let directory = '';
  const vmms: Vmm[] = [];
  const clients: QmpClient[] = [];
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'novacron-qmp-'));
    chmodSync(directory, 0o711);
  });
  afterEach(() => {
    for (const client of clients.splice(0)) client.close();
    for (const vmm of vmms.splice(0)) vmm.die();
    rmSync(directory, { recursive: true, force: true });
  });
  const begin = async (id: string, incoming = false): Promise<{ vmm: Vmm; monitor: VmMonitor }> => {
    const vmm = await kind.start({ directory, id, incoming });
    vmms.push(vmm);
    const until = Date.now() + 10_000;
    for (;;) {
      try {
        const client = await QmpClient.connect({ socketPath: join(directory, `${id}.qmp`) });
        clients.push(client);
        return { vmm, monitor: new VmMonitor(client) };
      } catch (error) {
        if (Date.now() > until) throw error;
        await new Promise((resolve) => {
          setTimeout(resolve, 20);
        });
      }
    }
  };

  test('greets, starts paused, resumes and stops with stamps that grow', async () => {
    const { monitor } = await begin('a');
    expect(monitor.qmp.greeting.major).toBe(kind.major);
    expect(await monitor.runState()).toBe('paused');
    await expect(monitor.stopVcpus()).rejects.toMatchObject({ code: 'vm/not-running' });
    const began = Date.now() * 1000;
    const started = await monitor.cont();
    expect(await monitor.runState()).toBe('running');
    const stopped = await monitor.stopVcpus();
    expect(await monitor.runState()).toBe('paused');
    expect(started.vmmStampUs).toBeGreaterThan(began - 1e6);
    expect(stopped.vmmStampUs).toBeGreaterThanOrEqual(started.vmmStampUs);
    expect(stopped.receivedAtMs).toBeGreaterThanOrEqual(started.receivedAtMs);
  });

  test('refuses an unknown command, answers the next, and many at once', async () => {
    const {
      monitor: { qmp },
    } = await begin('a');
    await expect(qmp.execute('no-such-command')).rejects.toMatchObject({
      code: 'vmm/protocol',
      errorClass: 'CommandNotFound',
    });
    await expect(qmp.execute('query-status', { reply: z.number() })).rejects.toMatchObject({
      code: 'vmm/protocol',
    });
    const answers = await Promise.all(
      Array.from({ length: 50 }, () => qmp.execute('query-status')),
    );
    expect(answers).toHaveLength(50);
  });

  test('a VMM that dies fails what is under way and everything after', async () => {
    const { vmm, monitor } = await begin('a');
    await monitor.cont();
    const waiting = monitor.qmp.expectEvent('NEVER', { timeoutMs: 20_000 });
    vmm.die();
    await expect(waiting.arrived).rejects.toMatchObject({ code: 'vmm/gone' });
    expect((await monitor.qmp.gone).code).toBe('vmm/gone');
    await expect(monitor.runState()).rejects.toMatchObject({ code: 'vmm/gone' });
  });

  test('device state goes over, the source can take itself back and send again', async () => {
    const { monitor: source } = await begin('a');
    await source.prepareMigration();
    await source.cont();
    for (const [round, id] of ['b', 'c'].entries()) {
      const { monitor: target } = await begin(id, true);
      expect(await target.runState()).toBe('incoming');
      await target.prepareMigration();
      const socketPath = join(directory, `${id}.incoming`);
      await target.armIncoming(socketPath);
      const loaded = target.waitIncomingCompleted();
      loaded.catch(() => undefined);
      await source.stopVcpus();
      // A device state fits its memory only: queue indices are checked against the rings.
      const memory = join(directory, 'a.ram');
      if (existsSync(memory)) copyFileSync(memory, join(directory, `${id}.ram`));
      const { bytesSent } = await source.migrateDeviceState(socketPath);
      await loaded;
      expect(bytesSent).toBeGreaterThan(0);
      expect(bytesSent).toBeLessThan(2e6);
      expect(await target.runState()).toBe('paused');
      expect(await source.runState()).toBe('paused');
      await expect(source.migrateDeviceState(socketPath)).rejects.toMatchObject({
        code: 'vmm/protocol',
      });
      if (round === 0) await source.cont();
      else await target.cont();
    }
  }, 30_000);

  test('device state that finds no listener fails, and the source can be resumed', async () => {
    const { monitor } = await begin('a');
    await monitor.prepareMigration();
    await monitor.cont();
    await monitor.stopVcpus();
    await expect(
      monitor.migrateDeviceState(join(directory, 'nobody'), 3_000),
    ).rejects.toMatchObject({
      code: expect.stringMatching(/^(engine\/failed|vmm\/protocol)$/) as string,
    });
    await monitor.cont();
    expect(await monitor.runState()).toBe('running');
  });

  test.each(['finish', 'cancel'] as const)(
    'a mirror starts, gets ready, and ends without residue: %s',
    async (end) => {
      const { monitor: source } = await begin('a');
      const { monitor: target } = await begin('b', true);
      const socketPath = join(directory, 'nbd.sock');
      const { qmp } = source;
      for (let round = 0; round < 2; round += 1) {
        await openExports(target.qmp, { disks: ['root'], socketPath });
        await startMirror(qmp, {
          disk: 'root',
          socketPath,
          bandwidthBytesPerSecond: 0,
          mode: 'background',
        });
        await waitMirrorReady(qmp, { disk: 'root', timeoutMs: 5_000 });
        await setMirrorSpeed(qmp, { disk: 'root', bandwidthBytesPerSecond: 5_000_000 });
        await setMirrorSpeed(qmp, { disk: 'root', bandwidthBytesPerSecond: 0 });
        expect(await switchToWriteBlocking(qmp, { disk: 'root', timeoutMs: 2_000 })).toBe(
          kind.major >= 9,
        );
        await waitMirrorDrained(qmp, { disk: 'root', timeoutMs: 2_000 });
        expect(await mirrorProgress(qmp, 'root')).toMatchObject({
          ready: true,
          failed: false,
          bytesTotal: diskBytes,
        });
        await (end === 'finish' ? finishMirror(qmp, 'root') : cancelMirror(qmp, 'root'));
        expect(await mirrorProgress(qmp, 'root')).toBeNull();
        await cancelMirror(qmp, 'root');
        await flushDisks(target.qmp, ['root']);
        await closeExports(target.qmp);
        await closeExports(target.qmp);
      }
    },
    30_000,
  );

  test('a mirror whose target dies hurts nobody and can be dropped', async () => {
    const { monitor: source } = await begin('a');
    const { vmm, monitor: target } = await begin('b', true);
    const socketPath = join(directory, 'nbd.sock');
    await openExports(target.qmp, { disks: ['root'], socketPath });
    await startMirror(source.qmp, {
      disk: 'root',
      socketPath,
      bandwidthBytesPerSecond: 65_536,
      mode: 'write-blocking',
    });
    vmm.die();
    await cancelMirror(source.qmp, 'root');
    await source.cont();
    expect(await mirrorProgress(source.qmp, 'root')).toBeNull();
  }, 30_000);
});
