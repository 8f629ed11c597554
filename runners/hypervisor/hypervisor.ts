/**
 * VMs of one host, from spec to gone. Decides what exists on disk and as a process, in which order
 * things are made durable, and who owns them; it never decides whether a VM may run: that is the
 * ledger's, and every VMM is therefore started paused.
 */
import { chmod, lchown, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { CodedError } from '../../contracts/failures.ts';
import type { Incarnation, VmName } from '../../contracts/identity.ts';
import { vmSpec, type RunningVm, type VmRunState, type VmSpec } from '../../contracts/runner.ts';
import { calmVmm } from '../cpu-priority.ts';
import { adoptVms, type Adoption, type VmOnHost } from './adoption.ts';
import { buildArguments } from './command-line.ts';
import { readTail } from './durable-file.ts';
import {
  awaitReaped, isVmmAlive, killAndReap, launchGuarded, readExit, readGuard, type GuardedVmm,
  type VmmExit,
} from './guard-process.ts';
import type { HypervisorConfig } from './hypervisor-config.ts';
import { describeRunning, readFacts, specOfRunning } from './inspection.ts';
import { MonitorConnections } from './monitor-connections.ts';
import { deviceGroup } from './device-group.ts';
import { removeTap, tapName } from './tap.ts';
import { VmCreation } from './vm-creation.ts';
import { makeMemoryFile, makeTaps, removeMemory, removeSockets } from './vm-start.ts';
import {
  arrivalsPath, listVmDirectories, readIdentity, readSpec, removeVmDirectory, vmPaths,
  writeIdentity, type VmIdentity, type VmPaths,
} from './vm-directory.ts';
import { VmMonitor } from './vm-monitor.ts';
import { endLinks, keepVolumeEpoch, mendLinks, startLinks } from './volume-links.ts';

/** A guest gets this long to shut down by itself. */
export const stopGraceMsDefault = 60_000;

/** The VMs of one host. All failures are CodedErrors. One instance per host process. */
export class Hypervisor {
  readonly #config: HypervisorConfig;
  readonly #log: Logger;
  readonly #connections = new MonitorConnections((vm) => this.#onVmmGone(vm));
  readonly #creation: VmCreation;
  #onVmmGone: (vm: VmName) => void = () => undefined;

  constructor(config: HypervisorConfig) {
    this.#config = config;
    this.#log = config.logger;
    this.#creation = new VmCreation(config);
  }

  /** Makes the directories that all VMs share. Idempotent. */
  async open(): Promise<void> {
    await mkdir(this.#config.vmsDirectory, { recursive: true, mode: 0o711 });
    await chmod(this.#config.vmsDirectory, 0o711);
    await mkdir(this.#config.memoryDirectory, { recursive: true, mode: 0o711 });
  }

  /** Names below the VM's directory on this host. */
  paths(vm: VmName): VmPaths {
    return vmPaths(this.#config.vmsDirectory, vm);
  }

  /** Name of the tap of a network card, for the NIC gate. */
  tapName(vm: VmName, nic: string): string {
    return tapName({ host: this.#config.host, vm, nic });
  }

  /** What was asked for. Failure: vm/unknown. */
  async spec(vm: VmName): Promise<VmSpec> {
    const spec = await readSpec(this.paths(vm));
    if (spec === null) throw new CodedError('vm/unknown', vm);
    return spec;
  }

  /** Which VMM and which image the directory holds. Failure: vm/unknown. */
  async identity(vm: VmName): Promise<VmIdentity> {
    const identity = await readIdentity(this.paths(vm));
    if (identity === null) throw new CodedError('vm/unknown', vm);
    return identity;
  }

  /**
   * Makes directory and disks of a new VM; starts nothing. A failed attempt leaves nothing.
   * Failures: input/invalid, vm/exists, vm/image-refused, disk/full.
   */
  async createVm(input: VmSpec): Promise<void> {
    const parsed = vmSpec.safeParse(input);
    if (!parsed.success) throw new CodedError('input/invalid', parsed.error.message.slice(0, 400));
    await this.#creation.make(parsed.data);
    this.#log.info({ vm: input.name }, 'vm created');
  }

  /**
   * Starts the VMM of a VM, paused before its first instruction; run `cont` once Started is in the
   * ledger. Whatever memory image was here is dropped. Failures: vm/unknown, vm/start-failed,
   * vm/exists (its VMM lives).
   */
  async startCold(options: {
    readonly vm: VmName;
    readonly incarnation: Incarnation;
  }): Promise<VmMonitor> {
    return this.#launch(options.vm, options.incarnation, 'cold');
  }

  /**
   * Makes VM directory, empty disks of equal size and format, and a VMM that waits for device
   * state, all from what the source's VMM reported. Arm it with `armIncoming` and `openExports`.
   * Failures: preflight/name-taken, preflight/segment, preflight/layout, vm/image-refused,
   * vm/start-failed. A failed attempt leaves nothing.
   */
  async createTarget(options: {
    readonly running: RunningVm;
    readonly incarnation: Incarnation;
  }): Promise<VmMonitor> {
    const { running } = options;
    const spec = vmSpec.safeParse(specOfRunning(running));
    if (!spec.success) throw new CodedError('preflight/layout', spec.error.message.slice(0, 400));
    try {
      await this.#creation.make(spec.data);
    } catch (error) {
      if (!(error instanceof CodedError && error.code === 'vm/exists')) throw error;
      throw new CodedError(
        'preflight/name-taken',
        `${running.name} on ${this.#config.host}`,
        error,
      );
    }
    try {
      // It waits for its guest: nothing of it writes before the gates are raised to its epoch.
      await keepVolumeEpoch(this.paths(running.name), 'view');
      const monitor = await this.#launch(running.name, options.incarnation, 'incoming');
      await monitor.prepareMigration();
      return monitor;
    } catch (error) {
      await this.deleteVm(running.name);
      throw error;
    }
  }

  async #launch(
    vm: VmName,
    incarnation: Incarnation,
    role: 'cold' | 'incoming',
  ): Promise<VmMonitor> {
    const { qemu, guardCommand, accelerator, firmware } = this.#config;
    const paths = this.paths(vm);
    const [spec, identity] = await Promise.all([this.spec(vm), this.identity(vm)]);
    const before = await readGuard(paths);
    if (before !== null && (await isVmmAlive(before))) {
      throw new CodedError('vm/exists', `${vm} has a living VMM (${before.vmmPid})`);
    }
    this.#connections.forget(vm);
    await removeMemory(identity);
    await removeSockets(paths);
    const memoryPath = join(this.#config.memoryDirectory, `${vm}.${incarnation}.ram`);
    const next: VmIdentity = { ...identity, incarnation, imageStamp: null, memoryPath, role };
    await writeIdentity(paths, next);
    await makeMemoryFile(memoryPath, { sizeBytes: spec.memoryBytes, uid: identity.uid });
    const tapNames = await makeTaps(this.#config, spec, identity.uid);
    const argv = [
      ...qemu.command,
      ...buildArguments({
        spec, paths, memoryPath, tapNames, accelerator, incoming: role === 'incoming', firmware,
      }),
    ];
    try {
      const { volumes: config } = this.#config;
      await startLinks({ config, vm, spec, paths, uid: identity.uid });
      const guard = await launchGuarded({
        guardCommand,
        paths,
        identity: next,
        incarnation,
        failover: spec.failover,
        deviceGroup: accelerator === 'kvm' ? await deviceGroup('/dev/kvm') : null,
        argv,
        environment: qemu.environment,
      });
      const monitor = await this.#connections.awaitFresh(vm, paths, guard);
      this.#log.info({ vm, incarnation, role, vmmPid: guard.vmmPid }, 'vmm started, paused');
      return monitor;
    } catch (error) {
      await this.killVm(vm);
      throw error;
    }
  }

  /**
   * The connection to a VM's VMM, kept open; made anew when it was lost. Failures: vm/unknown,
   * vm/not-running (no VMM), vmm/gone, vmm/timeout.
   */
  async monitor(vm: VmName): Promise<VmMonitor> {
    return this.#connections.get(vm, async () => {
      await this.#living(vm);
      return this.paths(vm).qmpSocket;
    });
  }

  async #living(vm: VmName): Promise<{ identity: VmIdentity; guard: GuardedVmm }> {
    const identity = await this.identity(vm);
    const guard = await readGuard(this.paths(vm));
    if (guard === null || !(await isVmmAlive(guard))) throw new CodedError('vm/not-running', vm);
    if (guard.incarnation !== null && guard.incarnation !== identity.incarnation) {
      throw new CodedError('vm/not-running', `${vm}: its VMM is of another incarnation`);
    }
    return { identity, guard };
  }

  /** What runs, as the VMM itself reports it. Failures as `monitor`. */
  async inspect(vm: VmName): Promise<RunningVm> {
    const { identity, guard } = await this.#living(vm);
    const { qmp } = await this.monitor(vm);
    if (identity.incarnation === null) throw new CodedError('vm/not-running', vm);
    return describeRunning(await readFacts(qmp), {
      host: this.#config.host,
      incarnation: identity.incarnation,
      vmmPid: guard.vmmPid,
      qemuVersion: qmp.greeting.version,
      spec: await this.spec(vm),
    });
  }

  /**
   * Records durably under which epoch the image runs from now on, once Started is in the ledger.
   * It may be awaited after `cont`: a stamp that stayed too old only makes the image be refused, so
   * its two flushes need not lengthen the blackout; one that is too new would be a lie. Failure:
   * vm/unknown.
   */
  async stampImage(options: { readonly vm: VmName; readonly epoch: number }): Promise<void> {
    const identity = await this.identity(options.vm);
    await writeIdentity(this.paths(options.vm), { ...identity, imageStamp: options.epoch });
  }

  /** Ways to shared volumes that died under a living VMM are made again. Failure: vm/unknown. */
  async mendVolumes(vm: VmName): Promise<readonly string[]> {
    const [spec, { uid }] = await Promise.all([this.spec(vm), this.identity(vm)]);
    return mendLinks({ config: this.#config.volumes, vm, spec, paths: this.paths(vm), uid });
  }

  /**
   * Lets the VMM connect to a socket of ours below its `run/` directory, or anywhere else that it
   * can reach; the data plane makes such sockets for mirrors and device state.
   */
  async admitToSocket(options: {
    readonly vm: VmName;
    readonly socketPath: string;
  }): Promise<void> {
    const { uid, gid } = await this.identity(options.vm);
    // The directory is the VMM's: a link put in our socket's place must not be followed.
    await lchown(options.socketPath, uid, gid);
  }

  /**
   * Asks the guest to shut down, ends the VMM when it does not within the grace, and resolves when
   * it is reaped. Answers whether the guest went by itself. Nothing happens when there is no VMM.
   */
  async stopVm(options: {
    readonly vm: VmName;
    readonly graceMs?: number;
  }): Promise<{ readonly byGuest: boolean }> {
    const { vm } = options;
    const guard = await readGuard(this.paths(vm));
    if (guard === null || !(await isVmmAlive(guard))) return { byGuest: true };
    const graceMs = options.graceMs ?? stopGraceMsDefault;
    if (graceMs > 0) {
      try {
        const { qmp } = await this.monitor(vm);
        await qmp.execute('system_powerdown');
        await awaitReaped(this.paths(vm), guard, graceMs);
        await this.#afterExit(vm);
        return { byGuest: true };
      } catch (error) {
        this.#log.info({ vm, why: String(error) }, 'the guest did not shut down in time');
      }
    }
    await this.killVm(vm);
    return { byGuest: false };
  }

  /**
   * Ends the VMM at once and resolves when it is reaped: the proof that Restart and Declined need.
   * Its memory image is gone after it. Without a VMM nothing happens. Failure: vmm/timeout.
   */
  async killVm(vm: VmName): Promise<VmmExit | null> {
    const exit = await killAndReap(this.paths(vm));
    await this.#afterExit(vm);
    return exit;
  }

  /** Of the living VMM, null without one. Asks no monitor: waiting for a page may block it. */
  async vmmPid(vm: VmName): Promise<number | null> {
    const guard = await readGuard(this.paths(vm));
    return guard !== null && (await isVmmAlive(guard)) ? guard.vmmPid : null;
  }

  /** A move that was settled needs no record any more of what arrived in post-copy. Idempotent. */
  async forgetArrivals(vm: VmName): Promise<void> {
    const identity = await readIdentity(this.paths(vm));
    if (identity?.memoryPath != null) await rm(arrivalsPath(identity.memoryPath), { force: true });
  }

  /** Memory and taps of a VMM that is gone. Disks stay. */
  async #afterExit(vm: VmName): Promise<void> {
    this.#connections.forget(vm);
    await endLinks(this.paths(vm));
    const identity = await readIdentity(this.paths(vm));
    await removeMemory(identity);
    const spec = await readSpec(this.paths(vm));
    for (const nic of spec?.nics ?? []) await removeTap(this.tapName(vm, nic.name));
  }

  /** Ends the VMM and removes everything of the VM on this host, disks included. Idempotent. */
  async deleteVm(vm: VmName): Promise<void> {
    await this.killVm(vm);
    await removeVmDirectory(this.#config.vmsDirectory, this.paths(vm));
    this.#log.info({ vm }, 'vm removed from this host');
  }

  /** How the VM's last VMM ended; null when it lives or nobody was left to say. */
  async lastExit(vm: VmName): Promise<VmmExit | null> {
    return readExit(this.paths(vm));
  }

  /** Resolves with how the VMM ended; rejects with vmm/timeout after `timeoutMs`. */
  async waitExit(options: {
    readonly vm: VmName;
    readonly timeoutMs: number;
  }): Promise<VmmExit | null> {
    const guard = await readGuard(this.paths(options.vm));
    return guard === null ? null : awaitReaped(this.paths(options.vm), guard, options.timeoutMs);
  }

  /**
   * End of what the guest wrote to its serial console; '' when there is nothing. The file is the
   * VMM's own: read it only through this, which follows no link. Failure: vm/unknown.
   */
  async consoleTail(options: { readonly vm: VmName; readonly bytesMax: number }): Promise<string> {
    await this.identity(options.vm);
    return readTail(this.paths(options.vm).serialLog, options.bytesMax);
  }

  /** All VMs with a directory here and the state of their VMMs. */
  async list(): Promise<readonly VmOnHost[]> {
    return Promise.all(
      (await listVmDirectories(this.#config.vmsDirectory)).map((vm) => this.look(vm)),
    );
  }

  /** VMs whose VMM lives, without asking a VMM: one that stands still must not hold anybody up. */
  async living(): Promise<readonly VmName[]> {
    const all = await listVmDirectories(this.#config.vmsDirectory);
    const alive = await Promise.all(all.map(async (vm) => {
      const guard = await readGuard(this.paths(vm)).catch(() => null);
      return guard !== null && (await isVmmAlive(guard));
    }));
    return all.filter((_, index) => alive[index]);
  }

  /** Who is told, at once, that a VMM closed its monitor: nearly always because it ended. */
  onVmmGone(listener: (vm: VmName) => void): void {
    this.#onVmmGone = listener;
  }

  /**
   * State of one VM: `absent` without a directory, `stopped` without a VMM, `failed` when it is
   * mute.
   */
  async look(vm: VmName): Promise<VmOnHost> {
    const identity = await readIdentity(this.paths(vm)).catch(() => null);
    if (identity === null) return { vm, runState: 'absent', incarnation: null, vmmPid: null };
    const { incarnation } = identity;
    try {
      const { guard } = await this.#living(vm);
      const runState = await (await this.monitor(vm)).runState().catch((): VmRunState => 'failed');
      return { vm, runState, incarnation, vmmPid: guard.vmmPid };
    } catch (error) {
      const stopped = error instanceof CodedError && error.code === 'vm/not-running';
      return { vm, runState: stopped ? 'stopped' : 'failed', incarnation, vmmPid: null };
    }
  }

  /**
   * Takes over what runs after a start of the runner: VMMs outlive it. Changes nothing; what it
   * calls orphans is for the sweep to remove after the ledger was asked.
   */
  async adopt(): Promise<Adoption> {
    const adoption = await adoptVms(this.#config, (vm) => this.look(vm));
    const { running, stopped, orphans } = adoption;
    // The runner may have died between raising a VMM for its blackout and calming it again.
    await Promise.all(running.map(async ({ vmmPid }) => vmmPid !== null && calmVmm(vmmPid)));
    this.#log.info({ running: running.length, stopped: stopped.length, orphans }, 'vms adopted');
    return adoption;
  }

  /** Lets go of all VMMs; they run on. */
  close(): void {
    this.#connections.close();
  }
}
