/**
 * Makes what a VM consists of before it first starts: directory, user, disks, kernel, firmware
 * variables, seed. Decides the order (the identity file comes last and makes the VM real) and that
 * a failed attempt leaves nothing.
 */
import { chmod, chown, copyFile, stat, writeFile } from 'node:fs/promises';
import { CodedError } from '../../contracts/failures.ts';
import { localDisks, type VmSpec } from '../../contracts/runner.ts';
import { buildSeed } from './cloud-init-seed.ts';
import { copyGuarded, makeDisk, type ImageContext } from './disk-image.ts';
import type { HypervisorConfig } from './hypervisor-config.ts';
import {
  diskPath,
  listVmDirectories,
  makeVmDirectory,
  removeVmDirectory,
  vmPaths,
  writeIdentity,
  type VmPaths,
} from './vm-directory.ts';

/** Kernels are copied into the VM's directory; distribution initrds reach 200 MB. */
const kernelBytesMax = 512 * 1024 * 1024;

/** Bridge of a segment on this host. Failure: preflight/segment. */
export function bridgeOf(config: HypervisorConfig, segment: string): string {
  const bridge = config.bridges[segment];
  if (bridge === undefined) throw new CodedError('preflight/segment', segment);
  return bridge;
}

/** Makes VMs one at a time, so that two never get one user. */
export class VmCreation {
  readonly #config: HypervisorConfig;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(config: HypervisorConfig) {
    this.#config = config;
  }

  /**
   * Makes everything of a VM, which must be valid. Failures: vm/exists, preflight/segment,
   * vm/image-refused, disk/full, vm/start-failed (no user left).
   */
  async make(spec: VmSpec): Promise<void> {
    for (const nic of spec.nics) bridgeOf(this.#config, nic.segment);
    const turn = this.#turn.then(() => this.#makeAs(spec));
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  async #makeAs(spec: VmSpec): Promise<void> {
    const { vmsDirectory } = this.#config;
    const paths = vmPaths(vmsDirectory, spec.name);
    const uid = await this.#freeUid();
    await makeVmDirectory(paths, spec, { uid, gid: uid });
    try {
      await this.#fill(spec, paths, uid);
      await writeIdentity(paths, {
        version: 1,
        vm: spec.name,
        uid,
        gid: uid,
        incarnation: null,
        imageStamp: null,
        memoryPath: null,
        role: null,
      });
    } catch (error) {
      await removeVmDirectory(vmsDirectory, paths);
      throw error;
    }
  }

  async #freeUid(): Promise<number> {
    const {
      uids: { first, count },
      vmsDirectory,
    } = this.#config;
    const taken = new Set<number>();
    for (const vm of await listVmDirectories(vmsDirectory)) {
      const fact = await stat(vmPaths(vmsDirectory, vm).directory).catch(() => null);
      if (fact !== null) taken.add(fact.gid);
    }
    for (let uid = first; uid < first + count; uid += 1) {
      if (!taken.has(uid)) return uid;
    }
    throw new CodedError('vm/start-failed', `all ${count} users for VMs are taken`);
  }

  async #fill(spec: VmSpec, paths: VmPaths, uid: number): Promise<void> {
    const { qemu, imageDirectories, firmware } = this.#config;
    const context: ImageContext = { qemu, uid, gid: uid, imageDirectories };
    for (const disk of localDisks(spec)) {
      await makeDisk({ disk, path: diskPath(paths, disk.name) }, context);
    }
    const { boot } = spec;
    if (boot.kind === 'kernel') {
      const copy = (sourcePath: string, path: string): Promise<void> =>
        copyGuarded({ sourcePath, path, bytesMax: kernelBytesMax }, context);
      await copy(boot.kernel, paths.kernel);
      if (boot.initrd !== null) await copy(boot.initrd, paths.initrd);
      return;
    }
    if (boot.firmware === 'uefi') {
      await copyFile(firmware.uefiVars, paths.firmwareVars);
      await chown(paths.firmwareVars, uid, uid);
      await chmod(paths.firmwareVars, 0o600);
    }
    if (boot.cloudInitUserData !== null) {
      const seed = buildSeed({
        instanceId: `novacron-${spec.name}`,
        hostName: spec.name,
        userData: boot.cloudInitUserData,
      });
      await writeFile(paths.seed, seed, { mode: 0o400, flag: 'wx' });
      await chown(paths.seed, uid, uid);
    }
  }
}
