/** Real QEMU and guest: a move's peer stalls or dies at the worst moment, and the guest goes on. */
import { chmodSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import {
  cancelMirror,
  cutMirror,
  mirrorProgress,
  openExports,
  startMirror,
  waitMirrorReady,
} from '../../runners/hypervisor/disk-mirror.ts';
import { readExit, readGuard } from '../../runners/hypervisor/guard-process.ts';
import type { Hypervisor } from '../../runners/hypervisor/hypervisor.ts';
import type { QemuBinary } from '../../runners/hypervisor/qemu-binary.ts';
import { diskPath } from '../../runners/hypervisor/vm-directory.ts';
import type { VmMonitor } from '../../runners/hypervisor/vm-monitor.ts';
import {
  awaitTick,
  freshIncarnation,
  HypervisorBench,
  missingParts,
  moveVm,
  pause,
  probeQemu10,
  qemu7,
  startGuest,
  ticks,
} from './hypervisor-bench.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`hypervisor faults are skipped: ${lacking} missing`);
const ten = lacking === null ? await probeQemu10() : null;
const qemus: readonly { readonly name: string; readonly qemu: QemuBinary }[] =
  lacking !== null
    ? []
    : [{ name: '7', qemu: await qemu7() }, ...(ten === null ? [] : [{ name: '10', qemu: ten }])];

/** Highest block number that the guest has written to its disk. */
const blocksWritten = (host: Hypervisor, name: string): number =>
  Math.max(
    0,
    ...[
      ...readFileSync(diskPath(host.paths(vmName(name)), 'root'), 'latin1').matchAll(
        /block (\d{16})/g,
      ),
    ].map((match) => Number(match[1])),
  );
async function awaitMoreBlocks(host: Hypervisor, name: string): Promise<void> {
  const before = blocksWritten(host, name);
  const until = Date.now() + 10_000;
  while (blocksWritten(host, name) < before + 5) {
    if (Date.now() > until) throw new Error(`the guest's disk stands still at block ${before}`);
    await pause(50);
  }
}

describe.skipIf(lacking !== null).each(qemus)('QEMU $name', ({ qemu }) => {
  let bench: HypervisorBench;
  let source: Hypervisor;
  let target: Hypervisor;
  const name = 'poor';
  const vm = vmName(name);
  beforeAll(async () => {
    bench = new HypervisorBench();
    source = await bench.host('hurt-a', { qemu });
    target = await bench.host('hurt-b', { qemu });
    await startGuest(source, bench.spec(name));
    await awaitTick(source, name, 5);
  }, 90_000);
  afterAll(async () => {
    await bench.dispose();
  }, 60_000);

  /** A target with a mirror that is in sync and write-blocking. */
  async function mirrored(): Promise<{ from: VmMonitor; to: VmMonitor; targetPid: number }> {
    const running = await source.inspect(vm);
    const from = await source.monitor(vm);
    const to = await target.createTarget({ running, incarnation: freshIncarnation() });
    const paths = target.paths(vm);
    await openExports(to.qmp, { disks: ['root'], socketPath: paths.nbdSocket });
    await to.armIncoming(paths.incomingSocket);
    for (const directory of [paths.directory, paths.runDirectory]) chmodSync(directory, 0o711);
    for (const path of [paths.nbdSocket, paths.incomingSocket]) chmodSync(path, 0o777);
    await from.prepareMigration();
    await startMirror(from.qmp, {
      disk: 'root',
      socketPath: paths.nbdSocket,
      bandwidthBytesPerSecond: 0,
      mode: 'write-blocking',
    });
    await waitMirrorReady(from.qmp, { disk: 'root', timeoutMs: 20_000 });
    return { from, to, targetPid: (await readGuard(paths))?.vmmPid ?? 0 };
  }
  async function goesOn(): Promise<void> {
    expect((await source.look(vm)).runState).toBe('running');
    await awaitTick(source, name, (ticks(source, name).at(-1) ?? 0) + 5);
    await awaitMoreBlocks(source, name);
    expect(readFileSync(source.paths(vm).serialLog, 'utf8')).not.toMatch(/I\/O error/);
    expect(await mirrorProgress((await source.monitor(vm)).qmp, 'root')).toBeNull();
  }

  test('the target dies while every guest write waits for it', async () => {
    const { from, targetPid } = await mirrored();
    process.kill(targetPid, 'SIGKILL');
    await awaitMoreBlocks(source, name);
    await cancelMirror(from.qmp, 'root');
    await goesOn();
    await target.deleteVm(vm);
  }, 60_000);

  test('the target stalls: dropping the mirror frees the guest at once', async () => {
    const { from, targetPid } = await mirrored();
    process.kill(targetPid, 'SIGSTOP');
    await pause(500);
    const began = performance.now();
    await cancelMirror(from.qmp, 'root');
    const tookMs = performance.now() - began;
    console.log(`dropping a stalled mirror: ${tookMs.toFixed(0)} ms`);
    expect(tookMs).toBeLessThan(5_000);
    await goesOn();
    await target.deleteVm(vm);
  }, 60_000);

  test('the target stalls while the vCPUs stop: cutting the mirror ends the wait', async () => {
    const { from, targetPid } = await mirrored();
    process.kill(targetPid, 'SIGSTOP');
    await pause(300);
    let stood = false;
    const stopped = from.stopVcpus().then(() => {
      stood = true;
    });
    await pause(700);
    expect(stood).toBe(false);
    await cutMirror(from.qmp, 'root');
    await stopped;
    await from.cont();
    await cancelMirror(from.qmp, 'root');
    await goesOn();
    await target.deleteVm(vm);
  }, 60_000);

  test('the target dies under the device state: the source takes itself back', async () => {
    const { from, targetPid } = await mirrored();
    await from.stopVcpus();
    process.kill(targetPid, 'SIGSTOP');
    const sent = from.migrateDeviceState(target.paths(vm).incomingSocket, 1_500);
    sent.catch(() => undefined);
    await pause(200);
    process.kill(targetPid, 'SIGKILL');
    await sent.catch((error: unknown) => {
      expect(error).toMatchObject({
        code: expect.stringMatching(/^(engine\/failed|vmm\/timeout)$/) as string,
      });
    });
    await from.cont();
    await cancelMirror(from.qmp, 'root');
    await goesOn();
    await target.deleteVm(vm);
  }, 60_000);

  test('a move given up after the device state', async () => {
    await moveVm({ name, source, target, mirror: 'kept', abortAfterState: true });
    await goesOn();
  }, 60_000);

  test('after all that it moves', async () => {
    await moveVm({ name, source, target, mirror: 'finished' });
    const at = ticks(source, name).at(-1) ?? 0;
    await awaitTick(target, name, at + 10);
    await awaitMoreBlocks(target, name);
    await source.deleteVm(vm);
  }, 60_000);

  test('a guest that ends by itself leaves an exit code and no process', async () => {
    const monitor = await target.monitor(vm);
    const pid = (await readGuard(target.paths(vm)))?.vmmPid ?? 0;
    await monitor.qmp.execute('quit');
    expect((await monitor.qmp.gone).code).toBe('vmm/gone');
    expect(await target.waitExit({ vm, timeoutMs: 5_000 })).toMatchObject({
      code: 0,
      signal: null,
    });
    expect(await readExit(target.paths(vm))).toMatchObject({ code: 0 });
    expect(() => process.kill(pid, 0)).toThrow(/ESRCH/);
    expect((await target.look(vm)).runState).toBe('stopped');
  }, 30_000);
});
