/**
 * What the end-to-end tests of the hypervisor layer share: two hosts on one machine, a guest that
 * counts aloud and writes numbered blocks, and one move made of the layer's own steps. The memory
 * goes by `cp` while the VM stands: the memory engine has tests of its own.
 */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import { hostName, incarnation, vmName, type Incarnation } from '../../contracts/identity.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import { mib } from '../../contracts/units.ts';
import {
  closeExports,
  flushDisks,
  openExports,
  startMirror,
  waitMirrorDrained,
  waitMirrorReady,
  cancelMirror,
  finishMirror,
} from '../../runners/hypervisor/disk-mirror.ts';
import { Hypervisor } from '../../runners/hypervisor/hypervisor.ts';
import {
  probeQemu,
  probeSystemQemu,
  type QemuBinary,
} from '../../runners/hypervisor/qemu-binary.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const guardStandIn = fileURLToPath(new URL('./hypervisor-guard-stand-in.mjs', import.meta.url));
const realGuard = join(root, 'native/target/release/novacron-guard');

/** What of the machine is missing for these tests, null when nothing is. */
export function missingParts(): string | null {
  if (process.getuid?.() !== 0) return 'root';
  if (!existsSync(join(root, '.cache/guest/initrd'))) return 'the guest image (npm run setup)';
  try {
    execFileSync('qemu-system-x86_64', ['--version']);
    return null;
  } catch {
    return 'qemu-system-x86_64';
  }
}

/** QEMU 10 as the bootstrap described it (or NOVACRON_QEMU_10 names such a file); null without. */
export async function probeQemu10(): Promise<QemuBinary | null> {
  const path = process.env['NOVACRON_QEMU_10'] ?? join(root, '.cache/qemu-10/qemu.json');
  if (!existsSync(path)) return null;
  const described = JSON.parse(readFileSync(path, 'utf8')) as {
    command: string[];
    environment?: Record<string, string>;
    qemuImg?: string[];
  };
  return probeQemu({
    command: described.command,
    imgCommand: described.qemuImg ?? ['qemu-img'],
    environment: described.environment ?? {},
  });
}
export const qemu7 = (): Promise<QemuBinary> => probeSystemQemu();

/** Guards to test with: the stand-in always, then the real one where it has been built. */
export const guards: readonly { readonly name: string; readonly command: readonly string[] }[] = [
  { name: 'stand-in', command: [process.execPath, guardStandIn] },
  ...(existsSync(realGuard) ? [{ name: 'novacron-guard', command: [realGuard] }] : []),
];

const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
while read -r m; do insmod /lib/modules/$m; done </lib/modules/order
[ -f /lib/modules/isofs.ko ] && insmod /lib/modules/isofs.ko
exec >/dev/ttyS0 2>&1 </dev/ttyS0
echo "BOOTID $(cat /proc/sys/kernel/random/boot_id)"
for word in $(cat /proc/cmdline); do case $word in
  ip4=*) ip addr add \${word#ip4=} dev eth0; ip link set eth0 up; echo "NET \${word#ip4=}";;
esac; done
if [ -b /dev/vda ]; then (i=0; while :; do i=$((i+1)); printf 'block %016d' $i |
  dd of=/dev/vda bs=4096 seek=$((i % 500)) conv=notrunc 2>/dev/null; sync; done) & fi
i=0; while :; do i=$((i+1)); echo "TICK $i"; usleep 50000; done
`;

/** Two hosts, their files and a kernel with a counting guest; \`dispose\` leaves nothing behind. */
export class HypervisorBench {
  readonly directory: string;
  readonly #hosts: Hypervisor[] = [];
  readonly #memory: string[] = [];
  #uid = 61_000;

  constructor() {
    this.directory = mkdtempSync('/var/tmp/novacron-hypervisor-');
    chmodSync(this.directory, 0o711);
    mkdirSync(join(this.directory, 'images'));
    this.#buildGuest();
  }

  #buildGuest(): void {
    const tree = join(this.directory, 'tree');
    mkdirSync(join(tree, 'bin'), { recursive: true });
    const initrd = readFileSync(join(root, '.cache/guest/initrd'));
    execFileSync('busybox', ['cpio', '-idm', 'lib/modules/*', 'bin/busybox'], {
      cwd: tree,
      input: initrd,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    writeFileSync(join(tree, 'init'), guestInit, { mode: 0o755 });
    const archive = execFileSync('sh', ['-c', 'find . | busybox cpio -o -H newc'], {
      cwd: tree,
      maxBuffer: 256 * mib,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    writeFileSync(this.initrd, archive, { mode: 0o644 });
    copyFileSync(join(root, '.cache/guest/vmlinuz'), this.kernel);
    rmSync(tree, { recursive: true });
  }

  get images(): string {
    return join(this.directory, 'images');
  }
  get kernel(): string {
    return join(this.images, 'vmlinuz');
  }
  get initrd(): string {
    return join(this.images, 'initrd');
  }

  async host(
    name: string,
    options: {
      readonly qemu: QemuBinary;
      readonly guard?: readonly string[];
      readonly bridges?: Readonly<Record<string, string>>;
    },
  ): Promise<Hypervisor> {
    const memoryDirectory = mkdtempSync('/dev/shm/novacron-hypervisor-');
    chmodSync(memoryDirectory, 0o711);
    this.#memory.push(memoryDirectory);
    const hypervisor = new Hypervisor({
      host: hostName(name),
      vmsDirectory: join(this.directory, `${name}-vms`),
      memoryDirectory,
      volumes: null,
      guardCommand: options.guard ?? guards.at(-1)?.command ?? [],
      qemu: options.qemu,
      accelerator: 'tcg',
      uids: { first: this.#uid, count: 100 },
      imageDirectories: [this.images],
      bridges: options.bridges ?? {},
      firmware: {
        uefiCode: '/usr/share/OVMF/OVMF_CODE_4M.fd',
        uefiVars: '/usr/share/OVMF/OVMF_VARS_4M.fd',
      },
      logger: pino({ level: 'silent' }),
    });
    this.#uid += 100;
    await hypervisor.open();
    this.#hosts.push(hypervisor);
    return hypervisor;
  }

  spec(name: string, overrides: Partial<VmSpec> = {}): VmSpec {
    return {
      version: 1,
      name: vmName(name),
      vcpuCount: 1,
      memoryBytes: 192 * mib,
      machineType: 'pc-i440fx-7.2',
      cpuModel: 'qemu64',
      disks: [
        { name: 'root', format: 'raw', sizeBytes: 8 * mib, sourceImage: null, volume: 'local' },
      ],
      nics: [],
      boot: {
        kind: 'kernel',
        kernel: this.kernel,
        initrd: this.initrd,
        commandLine: 'console=ttyS0 quiet rdinit=/init mitigations=off',
      },
      failover: 'none',
      ...overrides,
    };
  }

  async dispose(): Promise<void> {
    for (const host of this.#hosts) {
      for (const { vm } of await host.list()) await host.deleteVm(vm);
      host.close();
    }
    for (const path of [this.directory, ...this.#memory])
      rmSync(path, { recursive: true, force: true });
  }
}

export const freshIncarnation = (): Incarnation => incarnation(randomBytes(16).toString('hex'));
export const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

/** Ticks that the guest has printed on this host, in order. */
export function ticks(host: Hypervisor, name: string): readonly number[] {
  const log = readFileSync(host.paths(vmName(name)).serialLog, 'utf8');
  return [...log.matchAll(/TICK (\d+)\r?\n/g)].map((match) => Number(match[1]));
}
/** Boot ids that the guest has printed on this host. */
export const bootIds = (host: Hypervisor, name: string): readonly string[] =>
  [...readFileSync(host.paths(vmName(name)).serialLog, 'utf8').matchAll(/BOOTID (\S+)/g)].map(
    (match) => match[1] ?? '',
  );

/** Waits until the guest has counted that far on this host. */
export async function awaitTick(host: Hypervisor, name: string, count: number): Promise<void> {
  // 3 s on a quiet machine; ten times that with a load of 20 on two cores.
  const until = Date.now() + 120_000;
  while ((ticks(host, name).at(-1) ?? 0) < count) {
    if (Date.now() > until) {
      const log = readFileSync(host.paths(vmName(name)).serialLog, 'utf8');
      throw new Error(`the guest did not count to ${count}: ${log.slice(-300)}`);
    }
    await pause(50);
  }
}

/** Cold start up to a running guest. */
export async function startGuest(host: Hypervisor, spec: VmSpec): Promise<void> {
  await host.createVm(spec);
  const monitor = await host.startCold({ vm: spec.name, incarnation: freshIncarnation() });
  await host.stampImage({ vm: spec.name, epoch: 1 });
  await monitor.cont();
}

/**
 * Moves a VM by the steps of the layer. `abortAfterState` gives up when the device state has
 * already been loaded at the target: the source must go on as if nothing had been.
 */
export async function moveVm(options: {
  readonly name: string;
  readonly source: Hypervisor;
  readonly target: Hypervisor;
  readonly mirror: 'kept' | 'finished';
  readonly abortAfterState?: boolean;
}): Promise<{ readonly downtimeMs: number; readonly stateBytes: number }> {
  const { source, target } = options;
  const vm = vmName(options.name);
  const running = await source.inspect(vm);
  const disks = running.disks.map(({ name }) => name);
  const from = await source.monitor(vm);
  const to = await target.createTarget({ running, incarnation: freshIncarnation() });
  const targetPaths = target.paths(vm);
  await openExports(to.qmp, { disks, socketPath: targetPaths.nbdSocket });
  await to.armIncoming(targetPaths.incomingSocket);
  await from.prepareMigration();
  // In a real move the runners relay between two sockets; here the source's VMM may reach over.
  for (const directory of [targetPaths.directory, targetPaths.runDirectory])
    chmodSync(directory, 0o711);
  for (const path of [targetPaths.nbdSocket, targetPaths.incomingSocket]) {
    if (existsSync(path)) chmodSync(path, 0o777);
  }
  for (const disk of disks) {
    await startMirror(from.qmp, {
      disk,
      socketPath: targetPaths.nbdSocket,
      bandwidthBytesPerSecond: 0,
      mode: from.qmp.greeting.major < 8 ? 'write-blocking' : 'background',
    });
  }
  for (const disk of disks) await waitMirrorReady(from.qmp, { disk, timeoutMs: 20_000 });
  const loaded = to.waitIncomingCompleted(30_000);
  loaded.catch(() => undefined);
  const stopped = await from.stopVcpus();
  for (const disk of disks) {
    await waitMirrorDrained(from.qmp, { disk, timeoutMs: 5_000 });
    if (options.mirror === 'finished') await finishMirror(from.qmp, disk);
  }
  const memory = {
    from: (await source.identity(vm)).memoryPath,
    to: (await target.identity(vm)).memoryPath,
  };
  execFileSync('cp', ['--sparse=always', memory.from ?? '', memory.to ?? '']);
  const { bytesSent } = await from.migrateDeviceState(targetPaths.incomingSocket);
  await loaded;
  await flushDisks(to.qmp, disks);
  if (options.abortAfterState === true) {
    await target.deleteVm(vm);
    const resumed = await from.cont();
    for (const disk of disks) await cancelMirror(from.qmp, disk);
    return { downtimeMs: (resumed.vmmStampUs - stopped.vmmStampUs) / 1000, stateBytes: bytesSent };
  }
  await closeExports(to.qmp);
  await target.stampImage({ vm, epoch: 2 });
  const resumed = await to.cont();
  await to.announceSelf();
  for (const disk of disks) await cancelMirror(from.qmp, disk);
  return { downtimeMs: (resumed.vmmStampUs - stopped.vmmStampUs) / 1000, stateBytes: bytesSent };
}
