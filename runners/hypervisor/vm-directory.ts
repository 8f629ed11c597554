/**
 * Where everything of one VM lies on its host, and the two files that say what it is: `spec.json`
 * (what was asked for) and `identity.json` (which VMM process and which memory image). Decides
 * names and owners; the contents of disks and sockets are others' business.
 *
 * The directory belongs to root and the VM's user may only pass through it: a broken VMM can't
 * rewrite who it is. What the VMM itself writes lies in `run/` and `disks/`, which are its own.
 */
import { chmod, chown, mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import {
  incarnation,
  isVmName,
  vmName,
  type Incarnation,
  type VmName,
} from '../../contracts/identity.ts';
import { vmSpec, type VmSpec } from '../../contracts/runner.ts';
import { flushDirectory, readChecked, writeDurably } from './durable-file.ts';

/** Every path of one VM on this host. */
export interface VmPaths {
  readonly directory: string;
  readonly spec: string;
  readonly identity: string;
  readonly guardFile: string;
  readonly exitFile: string;
  readonly guardSocket: string;
  readonly vmmLog: string;
  readonly kernel: string;
  readonly initrd: string;
  readonly seed: string;
  readonly firmwareVars: string;
  readonly disksDirectory: string;
  /** Sockets that the VMM makes, and those of ours that it connects to. */
  readonly runDirectory: string;
  readonly qmpSocket: string;
  /** Second monitor, for benchmarks and people; the runner never uses it. */
  readonly observerSocket: string;
  readonly consoleSocket: string;
  readonly serialLog: string;
  readonly nbdSocket: string;
  readonly incomingSocket: string;
}

/** Names below a VM's directory. */
export function vmPaths(vmsDirectory: string, vm: VmName): VmPaths {
  const directory = join(vmsDirectory, vm);
  const run = join(directory, 'run');
  return {
    directory,
    spec: join(directory, 'spec.json'),
    identity: join(directory, 'identity.json'),
    guardFile: join(directory, 'guard.json'),
    exitFile: join(directory, 'exit.json'),
    guardSocket: join(directory, 'guard.sock'),
    vmmLog: join(directory, 'vmm.log'),
    kernel: join(directory, 'kernel'),
    initrd: join(directory, 'initrd'),
    seed: join(directory, 'seed.iso'),
    disksDirectory: join(directory, 'disks'),
    firmwareVars: join(directory, 'disks', 'firmware-vars.fd'),
    runDirectory: run,
    qmpSocket: join(run, 'qmp.sock'),
    observerSocket: join(run, 'observer.sock'),
    consoleSocket: join(run, 'console.sock'),
    serialLog: join(run, 'serial.log'),
    nbdSocket: join(run, 'nbd.sock'),
    incomingSocket: join(run, 'incoming.sock'),
  };
}

/** What post-copy keeps beside a memory image, see native/session/src/target/journal.rs. */
export const arrivalsPath = (memoryPath: string): string => `${memoryPath}.arrived`;

/** Image of one disk. The suffix is ours and says nothing about the format. */
export const diskPath = (paths: VmPaths, disk: string): string =>
  join(paths.disksDirectory, `${disk}.img`);

const identityShape = z.strictObject({
  version: z.literal(1),
  vm: z.string().refine(isVmName),
  uid: z.int().min(1),
  gid: z.int().min(1),
  /** The VMM started last in this directory; null before the first start. */
  incarnation: z
    .string()
    .regex(/^[0-9a-f]{32}$/)
    .nullable(),
  /** Epoch under which the memory image last ran; null before its first instruction. */
  imageStamp: z.int().min(0).nullable(),
  memoryPath: z.string().nullable(),
  role: z.enum(['cold', 'incoming']).nullable(),
});

/** Which VMM and which image live in a VM directory. */
export interface VmIdentity {
  readonly version: 1;
  readonly vm: VmName;
  readonly uid: number;
  readonly gid: number;
  readonly incarnation: Incarnation | null;
  readonly imageStamp: number | null;
  readonly memoryPath: string | null;
  readonly role: 'cold' | 'incoming' | null;
}

/** Null when there is no such file; `host/files` when it is damaged. */
export async function readIdentity(paths: VmPaths): Promise<VmIdentity | null> {
  const read = await readChecked(paths.identity, identityShape);
  if (read === null) return null;
  return {
    ...read,
    vm: vmName(read.vm),
    incarnation: read.incarnation === null ? null : incarnation(read.incarnation),
  };
}

/** Durable and atomic. */
export const writeIdentity = (paths: VmPaths, identity: VmIdentity): Promise<void> =>
  writeDurably(paths.identity, `${JSON.stringify(identity)}\n`);

/** What was asked for; null when there is none. */
export const readSpec = (paths: VmPaths): Promise<VmSpec | null> => readChecked(paths.spec, vmSpec);

/**
 * Makes the directory of a VM. Failure: vm/exists. The identity file, written last, makes it real.
 */
export async function makeVmDirectory(
  paths: VmPaths,
  spec: VmSpec,
  owner: { readonly uid: number; readonly gid: number },
): Promise<void> {
  try {
    await mkdir(paths.directory, { mode: 0o710 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    throw new CodedError('vm/exists', spec.name);
  }
  await chown(paths.directory, 0, owner.gid);
  await chmod(paths.directory, 0o710);
  for (const own of [paths.runDirectory, paths.disksDirectory]) {
    await mkdir(own, { mode: 0o700 });
    await chown(own, owner.uid, owner.gid);
    await chmod(own, 0o700);
  }
  await writeDurably(paths.spec, `${JSON.stringify(spec)}\n`);
}

/** Removes a VM's directory with everything in it, durably. */
export async function removeVmDirectory(vmsDirectory: string, paths: VmPaths): Promise<void> {
  await rm(paths.identity, { force: true });
  await rm(paths.directory, { recursive: true, force: true });
  await flushDirectory(vmsDirectory);
}

/** Names of the VM directories on this host, whatever state they are in. */
export async function listVmDirectories(vmsDirectory: string): Promise<readonly VmName[]> {
  const entries = await readdir(vmsDirectory, { withFileTypes: true });
  return entries
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .filter(isVmName);
}
