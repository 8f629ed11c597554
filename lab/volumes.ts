/**
 * The lab's volume server, in a namespace of its own: QEMU's storage daemon on a unix socket, and
 * our gate in front of it, which is all that hosts can reach. Both are processes of the lab, so
 * that a fault can end either.
 */
import { existsSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CodedError } from '../contracts/failures.ts';
import type { DiskSpec, SharedVolume } from '../contracts/runner.ts';
import type { TlsMaterial } from '../payloads/certificates.ts';
import { projectRoot } from './guest-image.ts';
import type { Lab } from './lab.ts';
import { storageAddress } from './network/plan.ts';

/** A volume, and the only VM that it belongs to. */
export interface LabVolume {
  readonly name: string;
  readonly vm: string;
  readonly sizeBytes: number;
}

/** What a spec says of a volume of the lab. */
export const volumeServer: SharedVolume['server'] =
  { name: 'store', address: storageAddress, port: 7500 };
/** The data disk of a guest on a volume of the lab. Pure. */
export const sharedDisk = (
  { name, sizeBytes }: Pick<LabVolume, 'name' | 'sizeBytes'>,
): DiskSpec => ({
  name: 'data', format: 'raw', sizeBytes, sourceImage: null,
  volume: { kind: 'shared', name, server: volumeServer },
});
/** Names of the two processes. */
export const volumeProcesses = { daemon: 'storage', gate: 'volume-gate' } as const;
/** The gate, and the links that host runners start. */
export const volumeProgram = join(projectRoot, 'native/target/release/novacron-volume');

const directoryOf = (lab: Lab): string => join(lab.directories.data, 'volumes');
/** The image of a volume, for who looks at it from outside. */
export const volumeImage = (lab: Lab, name: string): string =>
  join(directoryOf(lab), `${name}.img`);

/** Starts server and gate. Without volumes nothing is started. */
export async function startVolumeServer(lab: Lab, { volumes, tls, revokedPath }: {
  readonly volumes: readonly LabVolume[]; readonly tls: TlsMaterial;
  readonly revokedPath: string;
}): Promise<void> {
  if (volumes.length === 0) return;
  if (!existsSync(volumeProgram)) {
    throw new CodedError('input/invalid', `${volumeProgram} is missing: run \`npm run setup\``);
  }
  const directory = directoryOf(lab);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const socket = join(directory, 'nbd.sock');
  for (const { name, sizeBytes } of volumes) {
    writeFileSync(volumeImage(lab, name), '', { mode: 0o600 });
    truncateSync(volumeImage(lab, name), sizeBytes);
  }
  await lab.start({
    name: volumeProcesses.daemon, namespace: lab.plan.storageNamespace, ready: 'none',
    command: storageCommand(socket, volumes.map(({ name }) => (
      { name, path: volumeImage(lab, name) }))),
  });
  const config = join(directory, 'gate.json');
  writeFileSync(config, JSON.stringify({
    version: 1, listen: { address: storageAddress, port: volumeServer.port },
    tls: { ...tls, revokedPath }, stateDir: directory,
    volumes: volumes.map(({ name, vm }) => ({ name, vm, socket })),
  }), { mode: 0o600 });
  await lab.start({
    name: volumeProcesses.gate, namespace: lab.plan.storageNamespace, ready: 'line',
    command: [volumeProgram, 'gate', '--config', config],
  });
}

/** QEMU's storage daemon that exports raw images by NBD on a unix socket. Pure. */
export const storageCommand = (
  socket: string, images: readonly { readonly name: string; readonly path: string }[],
): readonly string[] => [
  'qemu-storage-daemon',
  // Any number of clients: the gate decides which of them may write.
  '--nbd-server', `addr.type=unix,addr.path=${socket},max-connections=0`,
  ...images.flatMap(({ name, path }) => [
    '--blockdev', JSON.stringify({
      driver: 'file', 'node-name': `file-${name}`, filename: path, discard: 'unmap',
    }),
    '--export', `type=nbd,id=export-${name},node-name=file-${name},name=${name},writable=on`,
  ]),
];
