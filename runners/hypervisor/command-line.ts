/**
 * The QEMU command line of a VM, as an argument list. Pure: paths, names and sizes in, arguments
 * out. JSON options wherever QEMU takes them; what has no JSON form is built from values whose
 * alphabet the spec has already limited, and commas are escaped all the same.
 */
import type { DiskSpec, VmSpec } from '../../contracts/runner.ts';
import { diskPath, type VmPaths } from './vm-directory.ts';
import { volumeSocket } from './volume-links.ts';

/** PCI slots are fixed per index, so that source and target agree without asking. */
export const firstDiskSlot = 4;
export const seedSlot = 12;
export const firstNicSlot = 16;

/** Everything that the command line depends on. */
export interface LaunchPlan {
  readonly spec: VmSpec;
  readonly paths: VmPaths;
  readonly memoryPath: string;
  /** Name of the tap of each network card, in the spec's order. */
  readonly tapNames: readonly string[];
  readonly accelerator: 'tcg' | 'kvm';
  /** Waits for a device state instead of booting. */
  readonly incoming: boolean;
  readonly firmware: Firmware;
}

/** UEFI images of the host; the variables are copied per VM. */
export interface Firmware {
  readonly uefiCode: string;
  readonly uefiVars: string;
}

/** Block node of a disk, and of the file below it. */
export const diskNode = (disk: string): string => `disk-${disk}`;
export const diskFileNode = (disk: string): string => `file-${disk}`;
/** Id of the virtio-blk device of a disk, of a network card, and of its backend. */
export const diskDevice = (disk: string): string => `blk-${disk}`;
export const nicDevice = (nic: string): string => `nic-${nic}`;
export const nicBackend = (nic: string): string => `tap-${nic}`;

const json = (value: Readonly<Record<string, unknown>>): string => JSON.stringify(value);
/** QEMU's own escape for values inside comma lists. */
const escaped = (value: string): string => value.replaceAll(',', ',,');
const slot = (index: number): string => `0x${index.toString(16)}`;

/**
 * Arguments after the QEMU binary's own. The VM always starts paused; `cont` is a separate step.
 */
export function buildArguments(plan: LaunchPlan): readonly string[] {
  const { spec, paths } = plan;
  const bus = spec.machineType.startsWith('pc-q35') ? 'pcie.0' : 'pci.0';
  return [
    '-name',
    // vCPU threads are told apart by their names then, in /proc and for people.
    `${spec.name},debug-threads=on`,
    '-nodefaults',
    '-no-user-config',
    '-display',
    'none',
    '-vga',
    'none',
    '-sandbox',
    'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
    '-msg',
    'timestamp=on',
    '-rtc',
    'base=utc',
    '-S',
    '-accel',
    plan.accelerator === 'kvm' ? 'kvm' : 'tcg,thread=multi',
    '-cpu',
    spec.cpuModel,
    '-smp',
    `cpus=${spec.vcpuCount},sockets=${spec.vcpuCount},cores=1,threads=1`,
    '-m',
    `size=${spec.memoryBytes / (1 << 20)}M`,
    '-object',
    json({
      'qom-type': 'memory-backend-file',
      id: 'ram0',
      'mem-path': plan.memoryPath,
      size: spec.memoryBytes,
      share: true,
    }),
    ...machine(plan),
    ...monitor('qmp', paths.qmpSocket),
    ...monitor('observer', paths.observerSocket),
    '-chardev',
    `socket,id=serial0,path=${escaped(paths.consoleSocket)},server=on,wait=off,` +
      `logfile=${escaped(paths.serialLog)},logappend=on`,
    '-serial',
    'chardev:serial0',
    ...disks(plan, bus),
    ...nics(plan, bus),
    ...(plan.incoming ? ['-incoming', 'defer'] : []),
  ];
}

function monitor(id: string, path: string): readonly string[] {
  return [
    '-chardev',
    `socket,id=${id},path=${escaped(path)},server=on,wait=off`,
    '-mon',
    `chardev=${id},mode=control`,
  ];
}

function machine({ spec, paths, firmware }: LaunchPlan): readonly string[] {
  const type = `${spec.machineType},memory-backend=ram0`;
  if (spec.boot.kind === 'kernel') {
    return [
      '-machine',
      type,
      '-kernel',
      paths.kernel,
      '-append',
      spec.boot.commandLine,
      ...(spec.boot.initrd === null ? [] : ['-initrd', paths.initrd]),
    ];
  }
  if (spec.boot.firmware === 'bios') return ['-machine', type];
  return [
    '-blockdev',
    json({
      driver: 'file',
      'node-name': 'firmware-code',
      filename: firmware.uefiCode,
      'read-only': true,
    }),
    '-blockdev',
    json({ driver: 'file', 'node-name': 'firmware-vars', filename: paths.firmwareVars }),
    '-machine',
    `${type},pflash0=firmware-code,pflash1=firmware-vars`,
  ];
}

/** Buffered I/O by threads only: dirty tracking can't see DMA into pinned pages. */
const buffered = { aio: 'threads', cache: { direct: false, 'no-flush': false } };

/**
 * A VMM holds its requests so long while its way to a volume is gone, and fails them afterwards.
 * Longer than a restart of the server; a stop of the VM waits for it, too.
 */
const reconnectSeconds = 120;

function diskFile(paths: VmPaths, disk: DiskSpec): Readonly<Record<string, unknown>> {
  if (disk.volume === 'local') {
    return { driver: 'file', filename: diskPath(paths, disk.name), ...buffered };
  }
  return {
    driver: 'nbd',
    server: { type: 'unix', path: volumeSocket(paths, disk.name) },
    export: disk.volume.name,
    'reconnect-delay': reconnectSeconds,
    cache: buffered.cache,
  };
}

function disks({ spec, paths }: LaunchPlan, bus: string): readonly string[] {
  const ofSpec = spec.disks.flatMap((disk, index) => [
    '-blockdev',
    json({ 'node-name': diskFileNode(disk.name), discard: 'unmap', ...diskFile(paths, disk) }),
    '-blockdev',
    json({
      driver: disk.format,
      'node-name': diskNode(disk.name),
      file: diskFileNode(disk.name),
      discard: 'unmap',
    }),
    '-device',
    json({
      driver: 'virtio-blk-pci',
      id: diskDevice(disk.name),
      drive: diskNode(disk.name),
      bus,
      addr: slot(firstDiskSlot + index),
      serial: disk.name,
      ...(spec.boot.kind === 'disk' ? { bootindex: index + 1 } : {}),
    }),
  ]);
  if (spec.boot.kind !== 'disk' || spec.boot.cloudInitUserData === null) return ofSpec;
  return [
    ...ofSpec,
    '-blockdev',
    json({
      driver: 'file',
      'node-name': 'seed-file',
      filename: paths.seed,
      'read-only': true,
      ...buffered,
    }),
    '-blockdev',
    json({ driver: 'raw', 'node-name': 'seed', file: 'seed-file', 'read-only': true }),
    '-device',
    json({ driver: 'virtio-blk-pci', id: 'seed-device', drive: 'seed', bus, addr: slot(seedSlot) }),
  ];
}

function nics({ spec, tapNames }: LaunchPlan, bus: string): readonly string[] {
  return spec.nics.flatMap((nic, index) => [
    '-netdev',
    json({
      type: 'tap',
      id: nicBackend(nic.name),
      ifname: tapNames[index],
      script: 'no',
      downscript: 'no',
      vhost: false,
    }),
    '-device',
    json({
      driver: 'virtio-net-pci',
      id: nicDevice(nic.name),
      netdev: nicBackend(nic.name),
      mac: nic.macAddress,
      bus,
      addr: slot(firstNicSlot + index),
      romfile: '',
    }),
  ]);
}
