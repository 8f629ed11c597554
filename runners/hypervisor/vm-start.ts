/** What every start of a VMM makes anew: memory file and taps, on ground cleared of old sockets. */
import { open, rm } from 'node:fs/promises';
import { CodedError } from '../../contracts/failures.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import type { HypervisorConfig } from './hypervisor-config.ts';
import { makeTap, tapName } from './tap.ts';
import { bridgeOf } from './vm-creation.ts';
import { arrivalsPath, type VmIdentity, type VmPaths } from './vm-directory.ts';

/** The memory image of a VMM that is gone, with what post-copy keeps beside it. Idempotent. */
export async function removeMemory(identity: VmIdentity | null): Promise<void> {
  const path = identity?.memoryPath ?? null;
  if (path === null) return;
  await rm(path, { force: true });
  await rm(arrivalsPath(path), { force: true });
}

/** The VM's memory, readable by nobody but its user. Failure: preflight/memory. */
export async function makeMemoryFile(
  path: string,
  options: { readonly sizeBytes: number; readonly uid: number },
): Promise<void> {
  const handle = await open(path, 'wx', 0o600);
  try {
    await handle.truncate(options.sizeBytes);
    await handle.chown(options.uid, options.uid);
  } catch (error) {
    await rm(path, { force: true });
    throw new CodedError('preflight/memory', `${path}: ${(error as Error).message}`, error);
  } finally {
    await handle.close();
  }
}

/** Taps of all cards of a VM, on their bridges; answers the names in the order of the spec. */
export async function makeTaps(
  config: HypervisorConfig,
  spec: VmSpec,
  uid: number,
): Promise<readonly string[]> {
  const names: string[] = [];
  for (const nic of spec.nics) {
    const name = tapName({ host: config.host, vm: spec.name, nic: nic.name });
    await makeTap({ name, uid, bridge: bridgeOf(config, nic.segment) });
    names.push(name);
  }
  return names;
}

/** Sockets that a former VMM has left: the new one could not bind to them. */
export async function removeSockets(paths: VmPaths): Promise<void> {
  const { qmpSocket, observerSocket, consoleSocket, nbdSocket, incomingSocket } = paths;
  for (const path of [qmpSocket, observerSocket, consoleSocket, nbdSocket, incomingSocket]) {
    await rm(path, { force: true });
  }
}
