/**
 * Taps of VMs in the host's network namespace: one per network card, owned by the VM's user and
 * enslaved to the bridge of its segment. Which frames pass is decided by the NIC gate, not here.
 */
import { createHash } from 'node:crypto';
import { chmod, stat } from 'node:fs/promises';
import { CodedError } from '../../contracts/failures.ts';
import type { HostName, VmName } from '../../contracts/identity.ts';
import { runProgram } from './run-program.ts';

const ip = (...args: readonly string[]): Promise<string> =>
  runProgram(['ip', ...args], { failure: 'vm/start-failed', timeoutMs: 10_000 });

/** All taps begin so; the NIC gate covers what begins so. */
export const tapPrefix = 'nv';

/**
 * Name of a tap: the same on every start, different per host; interface names hold 15 characters.
 */
export function tapName(of: {
  readonly host: HostName;
  readonly vm: VmName;
  readonly nic: string;
}): string {
  const digest = createHash('sha256').update(`${of.host}/${of.vm}/${of.nic}`).digest('hex');
  return `${tapPrefix}${digest.slice(0, 12)}`;
}

/**
 * Lets VMMs without privilege open /dev/net/tun, as udev's rule on every distribution does (0666);
 * in containers without udev the node is root's alone. Attaching still needs to own the tap.
 */
export async function openTunDevice(): Promise<void> {
  const { mode } = await stat('/dev/net/tun');
  if ((mode & 0o666) !== 0o666) await chmod('/dev/net/tun', 0o666);
}

/** Makes a tap anew (an old one of that name goes) and puts it on its bridge, up. */
export async function makeTap(options: {
  readonly name: string;
  readonly uid: number;
  readonly bridge: string;
}): Promise<void> {
  await openTunDevice();
  await removeTap(options.name);
  await ip('tuntap', 'add', 'dev', options.name, 'mode', 'tap', 'user', String(options.uid));
  await ip('link', 'set', 'dev', options.name, 'master', options.bridge, 'up');
}

/** Removes a tap; nothing happens when there is none. */
export async function removeTap(name: string): Promise<void> {
  try {
    await ip('link', 'del', 'dev', name);
  } catch (error) {
    if (!(error instanceof CodedError && error.detail.includes('Cannot find device'))) throw error;
  }
}
