/** Real QEMU and guest: the life of a VM on one host, what outlives the runner, and sudden ends. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import { mib } from '../../contracts/units.ts';
import { readGuard } from '../../runners/hypervisor/guard-process.ts';
import type { Hypervisor } from '../../runners/hypervisor/hypervisor.ts';
import { readFacts, readOfferedCpuFlags } from '../../runners/hypervisor/inspection.ts';
import { diskPath } from '../../runners/hypervisor/vm-directory.ts';
import {
  awaitTick,
  freshIncarnation,
  guards,
  HypervisorBench,
  missingParts,
  pause,
  qemu7,
  startGuest,
  ticks,
} from './hypervisor-bench.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`hypervisor life cycle is skipped: ${lacking} missing`);
if (guards.length < 2)
  console.warn('the real guard is skipped: native/target/release/novacron-guard missing');

const statusLine = (pid: number, field: string): string =>
  readFileSync(`/proc/${pid}/status`, 'latin1')
    .split('\n')
    .find((line) => line.startsWith(`${field}:`)) ?? '';

describe.skipIf(lacking !== null).each(guards)('with $name', ({ command }) => {
  let bench: HypervisorBench;
  let host: Hypervisor;
  beforeAll(async () => {
    bench = new HypervisorBench();
    host = await bench.host('life', { qemu: await qemu7(), guard: command });
  }, 60_000);
  afterAll(async () => {
    await bench.dispose();
  }, 60_000);
  const one = vmName('one');
  const pidOf = async (name: string): Promise<number> =>
    (await readGuard(host.paths(vmName(name))))?.vmmPid ?? 0;

  test('a VM starts paused, as a user that can change nothing of what it is', async () => {
    await host.createVm(bench.spec('one'));
    expect((await host.look(one)).runState).toBe('stopped');
    await expect(host.createVm(bench.spec('one'))).rejects.toMatchObject({ code: 'vm/exists' });
    const incarnation = freshIncarnation();
    const monitor = await host.startCold({ vm: one, incarnation });
    expect(await monitor.runState()).toBe('paused');
    await pause(300);
    expect(readFileSync(host.paths(one).serialLog, 'utf8')).toBe('');
    const identity = await host.identity(one);
    expect(identity).toMatchObject({ incarnation, imageStamp: null, role: 'cold' });
    const pid = await pidOf('one');
    expect(statusLine(pid, 'Uid')).toBe(`Uid:\t${Array(4).fill(identity.uid).join('\t')}`);
    expect(statusLine(pid, 'CapEff')).toMatch(/0{16}$/);
    expect(statusLine(pid, 'NoNewPrivs')).toMatch(/1$/);
    expect(statusLine(pid, 'Seccomp')).toMatch(/2$/);
    const paths = host.paths(one);
    expect(statSync(paths.directory)).toMatchObject({ uid: 0, gid: identity.gid, mode: 0o40710 });
    for (const own of [paths.runDirectory, paths.disksDirectory]) {
      expect(statSync(own)).toMatchObject({ uid: identity.uid, mode: 0o40700 });
    }
    for (const ours of [paths.identity, paths.spec, paths.guardFile]) {
      expect(statSync(ours).uid).toBe(0);
      expect(statSync(ours).mode & 0o077 & ~0o044).toBe(0);
    }
    expect(statSync(identity.memoryPath ?? '')).toMatchObject({
      uid: identity.uid,
      mode: 0o100600,
    });
    expect(statSync(diskPath(paths, 'root'))).toMatchObject({ uid: identity.uid, mode: 0o100600 });
    const stranger = { uid: identity.uid + 1, gid: identity.gid + 1 };
    for (const path of [diskPath(paths, 'root'), identity.memoryPath ?? '', paths.qmpSocket]) {
      expect(() => execFileSync('cat', [path], { ...stranger, stdio: 'pipe' })).toThrow(
        /ermission denied/,
      );
    }
    await host.stampImage({ vm: one, epoch: 3 });
    await monitor.cont();
    await awaitTick(host, 'one', 5);
    expect((await host.identity(one)).imageStamp).toBe(3);
    await expect(
      host.startCold({ vm: one, incarnation: freshIncarnation() }),
    ).rejects.toMatchObject({ code: 'vm/exists' });
  }, 60_000);

  test('it reports what it is, and its CPU flags are ones that the host offers', async () => {
    const running = await host.inspect(one);
    expect(running).toMatchObject({
      name: 'one',
      runState: 'running',
      machineType: 'pc-i440fx-7.2',
      cpuModel: 'qemu64',
      vcpuCount: 1,
      memoryBytes: 192 * mib,
      exactnessObstacles: [],
      disks: [{ name: 'root', format: 'raw', sizeBytes: 8 * mib, buffered: true }],
    });
    const { qmp } = await host.monitor(one);
    const offered = await readOfferedCpuFlags(qmp);
    expect(running.cpuFlags.length).toBeGreaterThan(15);
    expect(running.cpuFlags.filter((flag) => !offered.includes(flag))).toEqual([]);
    expect((await readFacts(qmp)).backends).toMatchObject([
      { type: 'memory-backend-file', share: true },
    ]);
  }, 30_000);

  test('it outlives the runner: another one adopts it and stops it', async () => {
    const pid = await pidOf('one');
    host.close();
    const before = ticks(host, 'one').at(-1) ?? 0;
    await awaitTick(host, 'one', before + 5);
    writeFileSync(
      join(
        statSync(host.paths(one).directory).isDirectory()
          ? ((await host.identity(one)).memoryPath?.replace(/[^/]+$/, '') ?? '')
          : '',
        'lost.0.ram',
      ),
      '',
    );
    mkdirSync(host.paths(vmName('half-made')).directory);
    const adoption = await host.adopt();
    expect(adoption.running).toMatchObject([{ vm: 'one', runState: 'running', vmmPid: pid }]);
    expect(adoption.orphans.map(({ kind }) => kind).toSorted()).toEqual([
      'directory',
      'memory-file',
    ]);
    await host.deleteVm(vmName('half-made'));
    host.close();
    const both = await Promise.all([host.inspect(one), host.monitor(one), host.look(one)]);
    expect(both[1]).toBe(await host.monitor(one));
    const { byGuest } = await host.stopVm({ vm: one, graceMs: 300 });
    expect(byGuest).toBe(false);
    expect((await host.look(one)).runState).toBe('stopped');
    expect(existsSync((await host.identity(one)).memoryPath ?? '')).toBe(false);
    expect(existsSync(`/proc/${pid}`)).toBe(false);
    await host.stopVm({ vm: one });
    expect((await host.adopt()).stopped).toEqual(['one']);
  }, 30_000);

  test('the disk stays over a cold start; the memory image and its stamp do not', async () => {
    const bytes = readFileSync(diskPath(host.paths(one), 'root')).filter(
      (byte) => byte !== 0,
    ).length;
    expect(bytes).toBeGreaterThan(0);
    await host.startCold({ vm: one, incarnation: freshIncarnation() });
    expect((await host.identity(one)).imageStamp).toBeNull();
    expect(
      readFileSync(diskPath(host.paths(one), 'root')).filter((byte) => byte !== 0).length,
    ).toBe(bytes);
    await host.deleteVm(one);
    await host.deleteVm(one);
    expect(await host.list()).toEqual([]);
    expect(existsSync(host.paths(one).directory)).toBe(false);
  }, 30_000);

  test('a VMM killed in the middle of a command is gone, then reaped, then startable', async () => {
    await startGuest(host, bench.spec('victim'));
    const vm = vmName('victim');
    const monitor = await host.monitor(vm);
    const pid = await pidOf('victim');
    process.kill(pid, 'SIGSTOP');
    await expect(monitor.qmp.execute('query-status', { timeoutMs: 100 })).rejects.toMatchObject({
      code: 'vmm/timeout',
    });
    const answer = monitor.qmp.execute('query-block-jobs', { timeoutMs: 20_000 });
    process.kill(pid, 'SIGKILL');
    await expect(answer).rejects.toMatchObject({ code: 'vmm/gone' });
    expect(await host.waitExit({ vm, timeoutMs: 5_000 })).toMatchObject({ signal: 9 });
    expect((await host.look(vm)).runState).toBe('stopped');
    await expect(host.monitor(vm)).rejects.toMatchObject({ code: 'vm/not-running' });
    expect(await host.killVm(vm)).toMatchObject({ signal: 9 });
    const again = await host.startCold({ vm, incarnation: freshIncarnation() });
    expect(await again.runState()).toBe('paused');
    await host.deleteVm(vm);
  }, 60_000);

  test('a VMM that can not start says why, and a failed target leaves nothing', async () => {
    const vm = vmName('wrong');
    await host.createVm(bench.spec('wrong', { machineType: 'pc-i440fx-99.9' }));
    await expect(host.startCold({ vm, incarnation: freshIncarnation() })).rejects.toThrow(
      /vm\/start-failed.*unsupported machine type/s,
    );
    expect((await host.look(vm)).runState).toBe('stopped');
    await host.deleteVm(vm);
    await expect(
      host.createVm(
        bench.spec('nowhere', {
          nics: [
            {
              name: 'eth0',
              macAddress: '52:54:00:00:00:01',
              address: '198.18.1.10/24',
              segment: 'none',
            },
          ],
        }),
      ),
    ).rejects.toMatchObject({ code: 'preflight/segment' });
    await expect(
      host.createVm({ ...bench.spec('bad'), cpuModel: 'qemu64,+vmx' }),
    ).rejects.toMatchObject({ code: 'input/invalid' });
    await expect(
      host.createVm(
        bench.spec('steal', {
          boot: { kind: 'kernel', kernel: '/etc/shadow', initrd: null, commandLine: '' },
        }),
      ),
    ).rejects.toMatchObject({ code: 'vm/image-refused' });
    await startGuest(host, bench.spec('origin'));
    const running = await host.inspect(vmName('origin'));
    await expect(
      host.createTarget({ running, incarnation: freshIncarnation() }),
    ).rejects.toMatchObject({ code: 'preflight/name-taken' });
    expect((await host.look(vmName('origin'))).runState).toBe('running');
    await expect(
      host.createTarget({
        running: { ...running, name: vmName('copy'), machineType: 'pc-i440fx-99.9' },
        incarnation: freshIncarnation(),
      }),
    ).rejects.toMatchObject({ code: 'vm/start-failed' });
    await host.deleteVm(vmName('origin'));
    expect(await host.list()).toEqual([]);
  }, 60_000);

  test("UEFI with a seed, on q35: flash and seed are the VM's own", async () => {
    if (!existsSync('/usr/share/OVMF/OVMF_CODE_4M.fd')) {
      console.warn('the UEFI start is skipped: OVMF missing');
      return;
    }
    const vm = vmName('firm');
    await host.createVm(
      bench.spec('firm', {
        machineType: 'pc-q35-7.2',
        boot: { kind: 'disk', firmware: 'uefi', cloudInitUserData: '#cloud-config\n' },
      }),
    );
    const monitor = await host.startCold({ vm, incarnation: freshIncarnation() });
    await monitor.cont();
    await pause(1_500);
    const running = await host.inspect(vm);
    expect(running.runState).toBe('running');
    expect(running.exactnessObstacles).toEqual([]);
    expect(statSync(host.paths(vm).firmwareVars).uid).toBe((await host.identity(vm)).uid);
    await host.deleteVm(vm);
  }, 60_000);
});
