/**
 * Small file systems for what a host keeps of its VMs, and for the ledger's log, so that they can be
 * filled to the last byte without touching anybody else's. They go with the lab.
 */
import {
  closeSync, fsyncSync, mkdirSync, openSync, rmdirSync, rmSync, statSync, truncateSync,
  writeFileSync, writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { CodedError } from '../../contracts/failures.ts';
import { kib, mib } from '../../contracts/units.ts';
import { runCommand } from '../command.ts';
import { hostStateDirectory } from '../compose.ts';
import type { Lab } from '../lab.ts';
import type { LabHost } from '../network/plan.ts';

/** Room for a guest's disk and for what a target keeps free (limits.diskReserveBytes). */
const hostDiskBytes = 512 * mib;
const ledgerDiskBytes = 32 * mib;
const filler = 'everything-else';

/** Where the ledger keeps its log. */
export const ledgerDisk = (lab: Lab): string => join(lab.directories.data, 'ledger');
/** Where a host keeps what belongs to its VMs. */
export const hostDisk = (lab: Lab, host: LabHost): string =>
  join(hostStateDirectory(lab, host), 'vms');

/** Before anything is started there. The images are sparse: they take what is written to them. */
export async function mountSmallDisks(lab: Lab): Promise<void> {
  const wanted = [
    { name: 'ledger', at: ledgerDisk(lab), bytes: ledgerDiskBytes },
    ...lab.plan.hosts.map((host) =>
      ({ name: host.name, at: hostDisk(lab, host), bytes: hostDiskBytes })),
  ];
  for (const { name, at, bytes } of wanted) {
    const image = join(lab.directories.data, `${name}.ext4`);
    mkdirSync(at, { recursive: true, mode: 0o755 });
    writeFileSync(image, '', { mode: 0o600 });
    truncateSync(image, bytes);
    await runCommand(['mkfs.ext4', '-q', '-m', '0', image]);
    await runCommand(['mount', '-o', 'loop', image, at]);
    rmdirSync(join(at, 'lost+found'));
  }
}

/**
 * Takes all the room that is left; the answer gives it back. Failure: internal where the folder is
 * not a small file system of its own, but the machine's.
 */
export function fillDisk(at: string): () => void {
  if (statSync(at).dev === statSync(dirname(at)).dev) {
    throw new CodedError('internal', `${at} is on the machine's own disk`);
  }
  const path = join(at, filler);
  const file = openSync(path, 'w', 0o600);
  try {
    for (const piece of [mib, 4 * kib, 1]) writeUntilFull(file, Buffer.alloc(piece, 1));
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  return () => rmSync(path, { force: true });
}

function writeUntilFull(file: number, piece: Buffer): void {
  try {
    while (writeSync(file, piece) > 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
}
