/**
 * The ways of a VM to its shared volumes: one process (native/volume, `link`) a disk, which
 * outlives this runner as the VMM does. Decides when they are started, ended and started again;
 * under which epoch they connect is in a file beside them, which the gates write.
 */
import { spawn } from 'node:child_process';
import { access, open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { identityUri, type VmName } from '../../contracts/identity.ts';
import { sharedDisks, type VmSpec } from '../../contracts/runner.ts';
import { readChecked, writeDurably } from './durable-file.ts';
import { processStartTime } from './guard-process.ts';
import type { VmPaths } from './vm-directory.ts';

/** What every link of this host is started with. */
export interface VolumeLinkConfig {
  readonly command: readonly string[];
  readonly tls: {
    readonly certPath: string; readonly keyPath: string; readonly caPath: string;
    readonly revokedPath: string;
  };
}

/** From exec to a socket that the VMM may connect to; slow on a loaded machine. */
const readyMsMax = 10_000;
const pollEveryMs = 10;
const recordSuffix = '.link.json';

/** Where the VMM connects for a disk. */
export const volumeSocket = (paths: VmPaths, disk: string): string =>
  join(paths.runDirectory, `volume-${disk}.sock`);
const recordPath = (paths: VmPaths, disk: string): string =>
  join(paths.directory, `${disk}${recordSuffix}`);
const epochPath = (paths: VmPaths): string => join(paths.directory, 'volume-epoch');

const recordShape = z.strictObject({
  version: z.literal(1), pid: z.int().min(2), startTime: z.int().min(0),
});

/**
 * Links connect under this epoch from now on, or only to read; the connections they have stay as
 * they are.
 */
export const keepVolumeEpoch = (paths: VmPaths, epoch: number | 'view'): Promise<void> =>
  writeDurably(epochPath(paths), `${epoch}\n`);

interface Links {
  readonly config: VolumeLinkConfig | null;
  readonly vm: VmName;
  readonly spec: VmSpec;
  readonly paths: VmPaths;
  /** The VM's user, to whom the sockets are given. */
  readonly uid: number;
}

/**
 * Starts the links of a VM whose VMM is about to start; those of a former one end. Nothing happens
 * for a VM without shared volumes. Failures: preflight/volume, vm/start-failed.
 */
export async function startLinks(links: Links): Promise<void> {
  await endLinks(links.paths);
  for (const { name } of sharedDisks(links.spec)) await startLink(links, name);
}

/** Starts those again that have died under a living VMM; answers the names of their disks. */
export async function mendLinks(links: Links): Promise<readonly string[]> {
  const mended: string[] = [];
  for (const { name } of sharedDisks(links.spec)) {
    if (await livingPid(recordPath(links.paths, name)) !== null) continue;
    await startLink(links, name);
    mended.push(name);
  }
  return mended;
}

/** Ends all links below a VM's directory. Idempotent; also where there is no such directory. */
export async function endLinks(paths: VmPaths): Promise<void> {
  const names = await readdir(paths.directory).catch((): string[] => []);
  for (const name of names.filter((one) => one.endsWith(recordSuffix))) {
    const record = join(paths.directory, name);
    const pid = await livingPid(record);
    // Without its record it ends by itself, too.
    await rm(record, { force: true });
    if (pid !== null) end(pid);
  }
}

async function livingPid(record: string): Promise<number | null> {
  const known = await readChecked(record, recordShape).catch(() => null);
  if (known === null) return null;
  return await processStartTime(known.pid) === known.startTime ? known.pid : null;
}

function end(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

async function startLink({ config, vm, spec, paths, uid }: Links, disk: string): Promise<void> {
  const volume = sharedDisks(spec).find(({ name }) => name === disk)?.volume;
  if (config === null || volume === undefined) {
    throw new CodedError('preflight/volume', 'this host has no volumePath in its configuration');
  }
  const record = recordPath(paths, disk);
  const configPath = join(paths.directory, `${disk}.link-config.json`);
  await rm(record, { force: true });
  await writeDurably(configPath, `${JSON.stringify({
    version: 1, vm, volume: volume.name, uid, tls: config.tls,
    server: { address: volume.server.address, port: volume.server.port },
    serverIdentity: identityUri({ role: 'volume', name: volume.server.name }),
    socket: volumeSocket(paths, disk), epochPath: epochPath(paths), recordPath: record,
  })}\n`);
  const [program = '', ...before] = config.command;
  const log = await open(join(paths.directory, 'volume-links.log'), 'a', 0o600);
  let ended: string | null = null;
  try {
    const child = spawn(program, [...before, 'link', '--config', configPath], {
      stdio: ['ignore', log.fd, log.fd], detached: true, cwd: '/',
      env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin' },
    });
    child.once('error', (error) => { ended = error.message; });
    child.once('exit', (code, signal) => { ended = `exit ${code ?? signal}`; });
    child.unref();
  } finally {
    await log.close();
  }
  const until = Date.now() + readyMsMax;
  while (ended === null && Date.now() < until) {
    // Written last: the socket is there.
    if (await access(record).then(() => true, () => false)) return;
    await sleep(pollEveryMs);
  }
  throw new CodedError('vm/start-failed', `the link of disk ${disk}: ${ended ?? 'not ready'}`);
}
