/** One QEMU of a peer engine: its command line, its start in a host's namespace, and its end. */
import { join } from 'node:path';
import { runCommand } from '../../command.ts';
import type { GuestImage, QemuProgram } from '../../guest-image.ts';
import type { Lab } from '../../lab.ts';
import type { LabHost } from '../../network/plan.ts';
import { vmBridge } from '../../network/plan.ts';
import type { LabProcess } from '../../processes.ts';
import type { GuestOrder } from '../engine.ts';
import { Observer } from '../observer.ts';

/** The machine of every guest that is compared: known to QEMU 7.2 and later. */
export const benchMachineType = 'pc-i440fx-7.2';
/** A named model; `max` would offer what only this machine has. */
export const benchCpuModel = 'qemu64';
const startMsMax = 20_000;

/** What one QEMU is started with. */
export interface QemuOrder {
  readonly name: string;
  readonly guest: GuestOrder;
  readonly image: GuestImage;
  readonly tap: string;
  readonly diskPath: string | null;
  readonly incoming: boolean;
  readonly controlSocket: string;
  readonly observerSocket: string;
}

/** Options of one QEMU; RAM is QEMU's own default kind, as its own migration expects. Pure. */
export function qemuOptions(order: QemuOrder): string[] {
  const { guest, image } = order;
  return [
    '-name', `${order.name},debug-threads=on`,
    '-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none',
    '-accel', 'tcg,thread=multi', '-machine', benchMachineType, '-cpu', benchCpuModel,
    '-smp', String(guest.vcpuCount), '-m', `${guest.memoryBytes / 1_048_576}M`,
    '-kernel', image.kernel, '-initrd', image.initrd, '-append', guest.commandLine,
    '-serial', `file:${order.controlSocket}.console`,
    ...(order.diskPath === null ? [] : [
      '-blockdev', JSON.stringify({
        driver: 'raw', 'node-name': 'd0',
        file: { driver: 'file', filename: order.diskPath, cache: { direct: false } },
      }),
      '-device', 'virtio-blk-pci,drive=d0',
    ]),
    '-netdev', `tap,id=n0,ifname=${order.tap},script=no,downscript=no`,
    '-device', `virtio-net-pci,netdev=n0,mac=${guest.macAddress}`,
    '-device', 'virtio-rng-pci',
    '-qmp', `unix:${order.controlSocket},server=on,wait=off`,
    '-qmp', `unix:${order.observerSocket},server=on,wait=off`,
    ...(order.incoming ? ['-incoming', 'defer'] : []),
  ];
}

/** Makes the tap that a QEMU joins; it is there again after a second call. */
export async function makeTap(host: LabHost, tap: string): Promise<void> {
  await runCommand(['ip', '-n', host.namespace, 'tuntap', 'add', tap, 'mode', 'tap'])
    .catch(() => undefined);
  await runCommand(['ip', '-n', host.namespace, 'link', 'set', tap, 'master', vmBridge, 'up']);
}

/** A running QEMU with the connection that drives it and the one that watches it. */
export interface RunningQemu {
  readonly host: LabHost;
  readonly process: LabProcess;
  readonly control: Observer;
  readonly observer: Observer;
}

/** Starts a QEMU in a host of the lab. */
export async function startQemu(options: {
  readonly lab: Lab;
  readonly host: LabHost;
  readonly program: QemuProgram;
  readonly order: Omit<QemuOrder, 'controlSocket' | 'observerSocket'>;
}): Promise<RunningQemu> {
  const { lab, host, program } = options;
  await makeTap(host, options.order.tap);
  const controlSocket = join(lab.directories.runtime, `${options.order.name}.q`);
  const observerSocket = join(lab.directories.runtime, `${options.order.name}.o`);
  const order: QemuOrder = { ...options.order, controlSocket, observerSocket };
  const process = await lab.start({
    name: order.name, namespace: host.namespace, ready: 'none',
    command: [...program.command, ...qemuOptions(order)], environment: program.environment,
  });
  const control = await Observer.attach(controlSocket, startMsMax).catch((error: unknown) => {
    throw new Error(`${order.name}: ${process.log(600)}`, { cause: error });
  });
  const observer = await Observer.attach(observerSocket, startMsMax);
  return { host, process, control, observer };
}

/** Ends a QEMU at once. */
export async function endQemu(qemu: RunningQemu): Promise<void> {
  qemu.observer.close();
  qemu.control.close();
  await qemu.process.kill();
}
