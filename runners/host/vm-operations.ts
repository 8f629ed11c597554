/**
 * The life cycle of VMs on this host as idempotent steps. Decides when a VM may run here: only
 * after the ledger took its start (Started), behind a gate raised to its epoch.
 */
import { randomBytes } from 'node:crypto';
import { CodedError } from '../../contracts/failures.ts';
import { incarnation, type Incarnation, type VmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { VmRunState } from '../../contracts/runner.ts';
import type { LifecycleHostActivities } from '../../contracts/vm-lifecycle.ts';
import type { VmMonitor } from '../hypervisor/vm-monitor.ts';
import type { HostContext } from './host-context.ts';
import { exitText } from './lost-vms.ts';
import { proposeUntilAnswered, readEntry } from './move/ledger-steps.ts';
import type { Turns } from './turns.ts';

type Step<Name extends keyof LifecycleHostActivities> = Parameters<
  LifecycleHostActivities[Name]
>[0];

/** A new VMM's identity: 128 random bits. */
export const newIncarnation = (): Incarnation => incarnation(randomBytes(16).toString('hex'));

export class VmOperations {
  readonly #context: HostContext;
  readonly #turns: Turns;

  constructor(context: HostContext, turns: Turns) {
    this.#context = context;
    this.#turns = turns;
  }

  /** Failures: vm/unknown, ownership/refused when it belongs elsewhere or moves. */
  async ownEntry(vm: VmName): Promise<VmEntry> {
    const entry = await readEntry(this.#context.world, vm);
    if (entry === null) throw new CodedError('vm/unknown', `${vm} is not in the ledger`);
    if (entry.owner !== this.#context.host) {
      throw new CodedError('ownership/refused', `${vm} belongs to ${entry.owner ?? 'nobody'}`);
    }
    return entry;
  }

  createVmFiles(step: Step<'createVmFiles'>): Promise<void> {
    return this.#turns.take(step.vm, async () => {
      await this.ownEntry(step.vm);
      const look = await this.#context.hypervisor.look(step.vm);
      if (look.runState === 'absent') await this.#context.hypervisor.createVm(step.spec);
    });
  }

  startVm(step: Step<'startVm'>): ReturnType<LifecycleHostActivities['startVm']> {
    return this.#turns.take(step.vm, async () => {
      const entry = await this.ownEntry(step.vm);
      if (entry.phase !== 'owned') {
        throw new CodedError('migration/open', `${step.vm} is ${entry.phase}`);
      }
      return this.start(entry);
    });
  }

  /** Makes the VM of `entry` run here: goes on with its image if the ledger allows it, else cold. */
  async start(entry: VmEntry): Promise<{
    readonly runState: VmRunState; readonly incarnation: Incarnation; readonly epoch: number;
  }> {
    const { hypervisor } = this.#context;
    const { vm } = entry;
    const look = await hypervisor.look(vm);
    if (look.runState === 'absent') {
      throw new CodedError('vm/start-failed', `${vm} has no files on this host`);
    }
    const identity = await hypervisor.identity(vm);
    const isCurrent = identity.incarnation !== null && identity.incarnation === entry.startedBy
      && identity.imageStamp === entry.lastStarted;
    if (isCurrent && look.runState === 'running' && entry.lastStarted === entry.epoch) {
      await (await this.#context.gatesOf(vm)).openNics();
      return { runState: 'running', incarnation: identity.incarnation, epoch: entry.epoch };
    }
    if (isCurrent && look.runState === 'paused') {
      return this.#run(entry, identity.incarnation, identity.imageStamp, await hypervisor.monitor(vm));
    }
    return this.startCold(entry);
  }

  /** Runs the paused image of `entry`, last run under `imageStamp`. Failure: ownership/refused. */
  async runImage(entry: VmEntry, imageStamp: number): Promise<void> {
    const { hypervisor } = this.#context;
    const { incarnation: image } = await hypervisor.identity(entry.vm);
    if (image === null) throw new CodedError('vm/not-running', `${entry.vm} has no VMM here`);
    await this.#run(entry, image, imageStamp, await hypervisor.monitor(entry.vm));
  }

  /** The paused image of this very epoch goes on: it has started here before. */
  async goOn(entry: VmEntry): ReturnType<VmOperations['start']> {
    await this.runImage(entry, entry.epoch);
    const { epoch, startedBy } = entry;
    return { runState: 'running', incarnation: startedBy ?? newIncarnation(), epoch };
  }

  /** Ends what is left of its VMM and boots it from its disks. */
  async startCold(before: VmEntry): Promise<{
    readonly runState: VmRunState; readonly incarnation: Incarnation; readonly epoch: number;
  }> {
    const { hypervisor, world } = this.#context;
    const exit = await hypervisor.killVm(before.vm);
    let entry = before;
    if (entry.lastStarted === entry.epoch && entry.startedBy !== null) {
      const verdict = await proposeUntilAnswered(world, [{
        kind: 'restart', vm: entry.vm, epoch: entry.epoch, incarnation: entry.startedBy,
        reason: exitText(exit),
      }]);
      if (!verdict.accepted) throw new CodedError('ownership/refused', verdict.reason);
      entry = await this.ownEntry(entry.vm);
    }
    // The VMM opens the disks when it starts: nobody of before may write them any more.
    await (await this.#context.gatesOf(entry.vm)).raise(entry.epoch);
    const fresh = newIncarnation();
    const monitor = await hypervisor.startCold({ vm: entry.vm, incarnation: fresh });
    try {
      return await this.#run(entry, fresh, null, monitor);
    } catch (error) {
      await hypervisor.killVm(entry.vm);
      throw error;
    }
  }

  /** Gate, Started, stamp, lease, cont, network. */
  async #run(
    entry: VmEntry, running: Incarnation, imageStamp: number | null, monitor: VmMonitor,
  ): Promise<{
    readonly runState: VmRunState; readonly incarnation: Incarnation; readonly epoch: number;
  }> {
    const { world, hypervisor } = this.#context;
    const { vm, epoch } = entry;
    const gates = await this.#context.gatesOf(vm);
    await gates.raise(epoch);
    const verdict = await proposeUntilAnswered(world, [
      { kind: 'started', vm, epoch, incarnation: running, imageStamp },
    ]);
    if (!verdict.accepted) throw new CodedError('ownership/refused', verdict.reason);
    await hypervisor.stampImage({ vm, epoch });
    await gates.bindLease(epoch);
    await monitor.cont();
    await gates.openNics();
    await this.#context.noteEnded(vm, false);
    this.#context.log.info({ vm, epoch, incarnation: running }, 'the VM runs here');
    return { runState: 'running', incarnation: running, epoch };
  }

  stopVm(step: Step<'stopVm'>): Promise<void> {
    return this.#turns.take(step.vm, async () => {
      await this.#context.hypervisor.stopVm({ vm: step.vm, graceMs: step.graceMs });
      await (await this.#context.gatesOf(step.vm)).closeNics();
    });
  }

  destroyVmFiles(step: Step<'destroyVmFiles'>): Promise<void> {
    return this.#turns.take(step.vm, async () => {
      const entry = await readEntry(this.#context.world, step.vm);
      if (entry?.owner === this.#context.host || entry?.target === this.#context.host) {
        throw new CodedError('ownership/refused', `${step.vm} belongs to this host: ${entry.phase}`);
      }
      await this.remove(step.vm);
    });
  }

  /** Everything of the VM on this host goes. The caller has asked the ledger. */
  async remove(vm: VmName): Promise<void> {
    await this.#context.forgetGates(vm);
    await this.#context.hypervisor.deleteVm(vm);
    await this.#context.world.note(vm, null);
    await this.#context.noteEnded(vm, false);
  }
}
