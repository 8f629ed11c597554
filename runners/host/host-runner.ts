/**
 * The host runner as its activities see it (HostOperations) and as an operator on the host sees it
 * (LocalHostOperations). Decides what is looked after without being asked: adoption at the start,
 * and a sweep of what nobody attends any more.
 */
import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import type { HostOperations } from '../../activities/host-operations.ts';
import { CodedError } from '../../contracts/failures.ts';
import type { VmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { LedgerEvent, VmEntry } from '../../contracts/ownership.ts';
import type { VmRunState } from '../../contracts/runner.ts';
import type { LocalStatus, LocalVm } from '../../payloads/host-socket.ts';
import type { HostContext } from './host-context.ts';
import type { LocalHostOperations } from './local-api.ts';
import { RestartBudget, stoppedStep } from './lost-vms.ts';
import { proposeUntilAnswered, readEntry } from './move/ledger-steps.ts';
import type { PeerGreeter } from './move/peer-link.ts';
import { halfOfPostCopy } from './move/post-copy.ts';
import { SourceMoves } from './source-moves.ts';
import { damageOf, TargetMoves } from './target-moves.ts';
import { Turns } from './turns.ts';
import { VmOperations } from './vm-operations.ts';

/** How often the sweep looks; what it ends was unattended for much longer, ms. */
const sweepEveryMs = 3_000;
const lostSession = 'the runner of the source lost the session while the VM stood';

export class HostRunner {
  readonly #context: HostContext;
  readonly #turns = new Turns();
  readonly #vms: VmOperations;
  readonly #sources: SourceMoves;
  readonly #targets: TargetMoves;
  readonly #restarts = new RestartBudget();
  /** VMs that were seen running, and were not asked to stop since. */
  readonly #ran = new Set<VmName>();
  readonly #startedAtMs = Date.now();
  #timer: NodeJS.Timeout | null = null;
  #sweeping = false;

  constructor(context: HostContext) {
    this.#context = context;
    this.#vms = new VmOperations(context, this.#turns);
    this.#sources = new SourceMoves(context, this.#turns, this.#vms);
    this.#targets = new TargetMoves(context, this.#turns, this.#vms);
  }

  /** Says whether a source runner's hello is expected here. */
  get greet(): PeerGreeter {
    return this.#targets.greet;
  }
  get openMoveCount(): number {
    return this.#sources.count + this.#targets.count;
  }

  /** What Temporal's activities call. */
  operations(): HostOperations {
    const { hypervisor } = this.#context;
    return {
      inspectVm: (input) => hypervisor.inspect(input.vm),
      checkTarget: (input) => this.#targets.check(input),
      prepareTarget: (input) => this.#targets.prepare(input),
      copyDisk: (input, call) => this.#sources.copyDisk(input, call),
      copyMemoryAndSwitchOver: (input, call) => this.#sources.copyMemoryAndSwitchOver(input, call),
      commandSession: (input) => this.#sources.command(input),
      peekSession: (step) => this.#sources.peek(step),
      peekCheck: (step) => this.#targets.peekCheck(step),
      verifyTarget: (input) => this.#targets.verify(input),
      resolveDamage: (input) => this.#targets.resolveDamage(input),
      releaseSource: async (input) => {
        const late = await this.#sources.release(input);
        await this.#targets.left(input.vm);
        return late;
      },
      abortSource: (input) => this.#sources.abort(input),
      discardTarget: (input) => this.#targets.discard(input),
      createVmFiles: (step) => this.#vms.createVmFiles(step),
      startVm: (step) => {
        this.#restarts.forget(step.vm);
        return this.#vms.startVm(step);
      },
      stopVm: async (step) => {
        await this.#vms.stopVm(step);
        this.#ran.delete(step.vm);
      },
      destroyVmFiles: (step) => this.#vms.destroyVmFiles(step),
    };
  }

  /** What the local socket offers with Temporal away. */
  localOperations(checks: () => Promise<Readonly<Record<string, string>>>): LocalHostOperations {
    return {
      listVms: () => this.#listVms(),
      status: async (): Promise<LocalStatus> => ({
        host: this.#context.host,
        pid: process.pid,
        startedAtMs: this.#startedAtMs,
        checks: await checks(),
        openMigrations: (await this.#context.hypervisor.list())
          .map(({ vm }) => vm)
          .filter((vm) => this.#sources.has(vm) || this.#targets.has(vm)),
      }),
      stopVm: ({ vm, graceMs }) => this.#stopLocally(vm, graceMs),
      openConsole: ({ vm }) => this.#openConsole(vm),
    };
  }

  async #listVms(): Promise<readonly LocalVm[]> {
    const { hypervisor } = this.#context;
    const found = await hypervisor.list();
    return Promise.all(found.map(async ({ vm, runState, incarnation, vmmPid }) => {
      const spec = await hypervisor.spec(vm);
      return {
        name: vm, runState, incarnation, vmmPid,
        memoryBytes: spec.memoryBytes, vcpuCount: spec.vcpuCount,
      };
    }));
  }

  /** A stop needs no ledger: it can only end a copy, never make a second one. */
  async #stopLocally(vm: VmName, graceMs: number): Promise<VmRunState> {
    if (this.#sources.has(vm) || this.#targets.has(vm)) {
      throw new CodedError('migration/open', `${vm} is being moved; cancel that first`);
    }
    const { hypervisor } = this.#context;
    await hypervisor.spec(vm);
    // Before it ends: it must stay ended also if this process does not live to see it.
    await this.#context.noteEnded(vm, true);
    await hypervisor.stopVm({ vm, graceMs });
    return (await hypervisor.look(vm)).runState;
  }

  async #openConsole(vm: VmName): Promise<Duplex> {
    const { hypervisor } = this.#context;
    const { runState } = await hypervisor.look(vm);
    if (runState !== 'running' && runState !== 'paused') {
      throw new CodedError('vm/not-running', `${vm} is ${runState}`);
    }
    return connect(hypervisor.paths(vm).consoleSocket);
  }

  /**
   * Takes over what runs after a restart of this process. What the ledger gives to this host goes
   * on, what it gives to another is removed; a VM that the ledger does not know is left alone, for
   * a ledger that was set up anew must not cost anybody a disk.
   */
  async adopt(): Promise<void> {
    const { hypervisor, log } = this.#context;
    const { running, stopped } = await hypervisor.adopt();
    for (const vm of [...running.map((seen) => seen.vm), ...stopped]) {
      try {
        await this.#turns.take(vm, () => this.#adoptOne(vm));
      } catch (error) {
        log.error({ vm, error: String(error) }, 'adoption failed; the VM is left as it is');
      }
    }
  }

  async #adoptOne(vm: VmName): Promise<void> {
    const { hypervisor, host, world, log } = this.#context;
    const entry = await readEntry(world, vm);
    // First of all: while pages are missing its VMM may not even answer.
    const isTorn = entry !== null && halfOfPostCopy(entry, host) === 'target';
    if (isTorn) await this.#targets.resume(entry);
    const { runState } = await hypervisor.look(vm);
    log.info({ vm, runState, owner: entry?.owner, phase: entry?.phase }, 'adopting');
    if (entry === null) {
      log.warn({ vm }, 'the ledger does not know this VM: it is left alone');
    } else if (entry.owner !== host) {
      // The source of an unsettled move keeps its image: it may be the only one.
      const isSource = entry.phase === 'unsettled' && entry.previous === host;
      // What it has received is for the attempt that follows, which asks for it.
      const isPrepared = entry.phase === 'preparing' && entry.target === host
        && runState === 'incoming';
      if (isSource) await this.#sources.resume(entry);
      else if (!isPrepared) await this.#vms.remove(vm);
    } else if (entry.phase === 'unsettled' && entry.lastStarted < entry.epoch) {
      await this.#finishTakeOver(entry);
    } else if (entry.phase === 'unsettled' && await damageOf(this.#context, vm) !== null) {
      log.error({ vm }, 'it stands damaged until an operator decides: novacron vm resolve');
    } else if (entry.phase === 'unsettled' && runState === 'paused') {
      await this.#goOnAfterStarted(entry);
    } else if (runState === 'running') {
      await (await this.#context.gatesOf(vm)).openNics();
    }
  }

  /** Committed to this host, not started: Ready attested that every byte and the device state is in. */
  async #finishTakeOver(entry: VmEntry): Promise<void> {
    const note = await this.#context.readNote(entry.vm);
    const isReady = note?.side === 'target'
      && note.migration === entry.migration && note.epoch + 1 === entry.epoch;
    if (isReady) await this.#vms.runImage(entry, note.epoch);
  }

  /** Started is recorded, `cont` was not reached: the image goes on under the same epoch. */
  async #goOnAfterStarted(entry: VmEntry): Promise<void> {
    const { incarnation } = await this.#context.hypervisor.identity(entry.vm);
    if (incarnation === null || incarnation !== entry.startedBy) return;
    await this.#vms.runImage(entry, entry.epoch);
  }

  /** Starts looking after what nobody attends. */
  watch(): void {
    this.#context.hypervisor.onVmmGone((vm) => {
      this.#lookAfterGone(vm).catch((error: unknown) => {
        this.#context.log.error({ vm, error: String(error) }, 'looking after a dead VMM failed');
      });
    });
    this.#timer = setInterval(() => void this.#sweep(), sweepEveryMs);
    void this.#sweep();
  }

  async #sweep(): Promise<void> {
    if (this.#sweeping) return;
    this.#sweeping = true;
    try {
      await this.#sources.sweep();
      await this.#targets.sweep();
      for (const { vm, runState } of await this.#context.hypervisor.list()) {
        if (runState === 'running') this.#ran.add(vm);
        else await this.#lookAfter(vm);
        if (runState === 'running' || runState === 'paused') await this.#mendVolumes(vm);
      }
    } catch (error) {
      this.#context.log.error({ error: String(error) }, 'sweep failed');
    } finally {
      this.#sweeping = false;
    }
  }

  async #mendVolumes(vm: VmName): Promise<void> {
    const mended = await this.#turns.take(vm, () => this.#context.hypervisor.mendVolumes(vm));
    if (mended.length > 0) {
      this.#context.log.warn({ vm, disks: mended }, 'ways to shared volumes were made again');
    }
  }

  /** Its monitor is gone: the next sweep would see it too, seconds later. */
  async #lookAfterGone(vm: VmName): Promise<void> {
    // How it ended is written once it is reaped.
    await this.#context.hypervisor.waitExit({ vm, timeoutMs: sweepEveryMs }).catch(() => null);
    await this.#lookAfter(vm);
  }

  /** A VM without a session here that does not run: it goes on, goes back or goes. */
  #lookAfter(vm: VmName): Promise<void> {
    return this.#turns.take(vm, async () => {
      if (this.#sources.has(vm) || !(await this.#targets.letGo(vm))) return;
      const { runState } = await this.#context.hypervisor.look(vm);
      const entry = runState === 'absent' ? null : await readEntry(this.#context.world, vm);
      if (entry === null) return;
      if (runState === 'stopped') await this.#settleStopped(entry);
      await this.#settleStanding(entry, runState);
    });
  }

  /** No VMM: it died and the VM is started again, cold, or it was ended and that is recorded. */
  async #settleStopped(entry: VmEntry): Promise<void> {
    const { hypervisor, host, world, log } = this.#context;
    const { vm, epoch } = entry;
    const [exit, endedHere] = await Promise.all([
      hypervisor.lastExit(vm), this.#context.wasEnded(vm),
    ]);
    const step = stoppedStep({ entry, host, exit, endedHere, ranHere: this.#ran.has(vm) });
    if (step === 'record') {
      await proposeUntilAnswered(world, [{ kind: 'desire', vm, epoch, desired: 'stopped' }]);
      log.warn({ vm, exit, endedHere }, 'the VM was ended on purpose: the ledger is told');
    } else if (step === 'start' && this.#restarts.take(vm, world.nowMs())) {
      log.warn({ vm, epoch, exit }, 'its VMM is gone: the VM is started again');
      try {
        await this.#vms.start(entry);
      } catch (error) {
        log.error({ vm, error: String(error) }, 'a lost VM could not be started');
      }
    }
    this.#ran.delete(vm);
  }

  async #settleStanding(entry: VmEntry, runState: VmRunState): Promise<void> {
    const { world, host, log } = this.#context;
    const { vm, phase, migration, epoch } = entry;
    const isPatient = world.nowMs() - entry.changedAtMs > timing.blackoutSelfDecisionMs;
    if (phase === 'owned' && entry.owner !== host) {
      log.warn({ vm, owner: entry.owner }, 'what is left of a moved VM is removed');
      await this.#vms.remove(vm);
    } else if (phase === 'owned' && entry.desired === 'running' && (runState === 'paused'
      || (runState === 'failed' && entry.lastStarted < epoch))) {
      // One that is mute was stopped by its lease, and the ledger has given it a new epoch since.
      log.warn({ vm, runState }, 'the VM stands although it is ours: it goes on, or starts anew');
      await this.#vms.start(entry);
    } else if (halfOfPostCopy(entry, host) === 'source') {
      await this.#sources.takeUp(entry);
    } else if (migration === null || !isPatient || runState !== 'paused') {
      return;
    } else if (phase === 'preparing' && entry.owner === host) {
      await this.#askBack({ kind: 'abort', vm, migration, epoch, reason: lostSession });
    } else if (phase === 'unsettled' && entry.previous === host && entry.lastStarted < epoch) {
      await this.#askBack({ kind: 'revert', vm, migration, epoch, reason: lostSession });
    }
  }

  /** The ledger decides; the next sweep acts on what it decided. */
  async #askBack(event: LedgerEvent): Promise<void> {
    const { accepted } = await proposeUntilAnswered(this.#context.world, [event]);
    this.#context.log.warn({ event, accepted }, 'asked the ledger to take the VM back');
  }

  async close(): Promise<void> {
    if (this.#timer !== null) clearInterval(this.#timer);
    await this.#sources.closeAll();
    await this.#targets.closeAll();
  }
}
