/**
 * Moves away from this host: one SourceMove a VM, made by the first step that needs it and joined
 * by every later one. Decides when an unattended one ends and what is left behind afterwards.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { defaultExactness } from '../../contracts/exactness.ts';
import { CodedError, FinalError } from '../../contracts/failures.ts';
import { identityUri, type VmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type {
  HostActivities, LateFigures, SessionOutcome, SessionProgress, StepInput,
} from '../../contracts/migration.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { bytes, bytesPerSecond, millis, pages } from '../../contracts/units.ts';
import type { OperationCall } from '../../activities/host-operations.ts';
import type { HostContext } from './host-context.ts';
import { proposeUntilAnswered, readEntry } from './move/ledger-steps.ts';
import { MirrorSet } from './move/mirror-set.ts';
import { barredSource } from './move/barred-ports.ts';
import { openPeerLink } from './move/peer-link.ts';
import { halfOfPostCopy, ResumedSource } from './move/post-copy.ts';
import { SourceMove } from './move/source-move.ts';
import { plantedFault } from './planted-faults.ts';
import type { Turns } from './turns.ts';
import { sourceVmm } from './vm-ports.ts';
import type { VmOperations } from './vm-operations.ts';
import { whileCalled } from './while-called.ts';

type CopyInput = Parameters<HostActivities['copyMemoryAndSwitchOver']>[0];
type CommandInput = Parameters<HostActivities['commandSession']>[0];

/** How often a waiting call marks its session as attended, ms. */
const attendEveryMs = 1_000;
/** The workflow goes on later: a guest that was just started needs the CPUs itself, ms. */
const firstOfGuestMs = 150;

export class SourceMoves {
  readonly #context: HostContext;
  readonly #turns: Turns;
  readonly #vms: VmOperations;
  readonly #moves = new Map<VmName, {
    readonly migration: string;
    readonly move: SourceMove;
    /** What was prepared for it at the target. */
    readonly attempt: string | undefined;
  }>();
  /** Frozen images that a runner before this one had handed over. */
  readonly #served = new Map<VmName, ResumedSource>();

  constructor(context: HostContext, turns: Turns, vms: VmOperations) {
    this.#context = context;
    this.#turns = turns;
    this.#vms = vms;
  }

  /** VMs with a session here; the sweep leaves them alone. */
  has(vm: VmName): boolean {
    return this.#moves.has(vm) || this.#served.has(vm);
  }
  get count(): number {
    return this.#moves.size + this.#served.size;
  }

  async copyDisk(input: CopyInput, call: OperationCall): Promise<void> {
    const move = await this.#open(input);
    const synced = move.syncDisks().catch((error: unknown): never => {
      throw error instanceof CodedError ? new FinalError(error.code, error.detail, error) : error;
    });
    await this.#attended(move, whileCalled(synced, call));
  }

  async copyMemoryAndSwitchOver(input: CopyInput, call: OperationCall): Promise<SessionOutcome> {
    const move = await this.#open(input);
    const outcome = await this.#attended(move, whileCalled(move.run(), call));
    return outcome.kind === 'handed-over' ? sleep(firstOfGuestMs, outcome) : outcome;
  }

  async command(input: CommandInput): Promise<void> {
    const served = this.#served.get(input.vm);
    if (served?.migration !== input.migration) return this.#find(input).command(input.command);
    if (input.command.kind !== 'set-bandwidth') {
      throw new CodedError('migration/past-return', `${input.command.kind}: the VM runs elsewhere`);
    }
    served.setBandwidth(input.command.bandwidthBytesPerSecond);
  }

  peek(step: StepInput): SessionProgress | null {
    const known = this.#moves.get(step.vm);
    return known?.migration === step.migration && !known.move.isClosed
      ? known.move.progress() : null;
  }

  /**
   * Source image and files go, once the ledger says that the move is settled elsewhere; answers
   * what the session had counted by then, null when it is gone.
   */
  release(input: StepInput): Promise<LateFigures | null> {
    return this.#turns.take(input.vm, async () => {
      const entry = await readEntry(this.#context.world, input.vm);
      if (entry?.owner === this.#context.host || entry?.phase === 'unsettled') {
        throw new CodedError('ownership/refused', `${input.vm} is ${entry.phase}, not released`);
      }
      const known = this.#moves.get(input.vm);
      const last = known?.migration === input.migration ? known.move.progress() : null;
      await this.#close(input.vm);
      await this.#vms.remove(input.vm);
      return last === null ? null
        : { bytesOnWire: last.bytesOnWire, memoryBytesSent: last.bytesDone };
    });
  }

  /** Compensation: the session ends; if the ledger gave the VM back, it runs here. */
  async abort(input: StepInput): Promise<void> {
    const known = this.#moves.get(input.vm);
    if (known !== undefined && known.migration === input.migration) {
      await known.move.abort('compensation');
    }
    await this.#turns.take(input.vm, async () => {
      const entry = await readEntry(this.#context.world, input.vm);
      const isOurs = entry?.owner === this.#context.host && entry.phase === 'owned';
      if (!isOurs) return;
      await this.#close(input.vm);
      const { runState } = await this.#context.hypervisor.look(input.vm);
      if (runState === 'paused' && entry.desired === 'running') await this.#vms.start(entry);
    });
  }

  /**
   * Serves the frozen image of a VM that runs elsewhere without all of its pages, after a runner
   * before this one, or a session of it, has died. Without effect when it is served.
   */
  async resume(entry: VmEntry): Promise<void> {
    const { hypervisor, engine, config, host, world, revoked, log } = this.#context;
    const { vm, migration, owner, quiesced } = entry;
    if (halfOfPostCopy(entry, host) !== 'source' || this.has(vm)) return;
    const [note, identity, look, spec] = await Promise.all([
      this.#context.readNote(vm), hypervisor.identity(vm), hypervisor.look(vm), hypervisor.spec(vm),
    ]);
    const { lanes } = note ?? {};
    if (migration === null || owner === null || quiesced === null || lanes === undefined
      || note?.migration !== migration || identity.memoryPath === null) {
      throw new CodedError('internal', `no note leads from the frozen image of ${vm}`);
    }
    if (look.runState !== 'paused' || look.vmmPid === null) {
      throw new CodedError('vm/not-running', `the frozen image of ${vm} is ${look.runState}`);
    }
    const session = engine.resumeSource({
      migration, epoch: note.epoch,
      target: {
        address: lanes.address, port: lanes.port,
        identity: identityUri({ role: 'host', name: owner }),
      },
      laneCount: lanes.count,
      tls: { ...config.tls, revokedSerials: revoked.entries().map(({ serial }) => serial) },
      memoryPath: identity.memoryPath,
      memoryBytes: bytes(spec.memoryBytes),
      vmmPid: look.vmmPid,
      deviceStateSocket: join(hypervisor.paths(vm).runDirectory, 'device-out.sock'),
      disks: [],
      socketUid: identity.uid,
      bandwidthBytesPerSecond: bytesPerSecond(lanes.bandwidthBytesPerSecond),
      downtimeBudgetMs: millis(0),
      postCopy: true,
      balloon: false,
      deadlineMs: millis(0),
      exactness: 'off',
      planted: null,
    }, {
      digest: quiesced.digest,
      missingDigest: quiesced.missingDigest,
      missingPageCount: pages(quiesced.missingPageCount),
    });
    const moveLog = log.child({ vm, migration });
    moveLog.warn({ target: owner }, 'the frozen image is served again');
    this.#served.set(vm, new ResumedSource({
      migration, session, nowMs: world.nowMs(), log: moveLog,
    }));
  }

  /** As `resume`; a failure is told and does not end the sweep, which tries it again. */
  async takeUp(entry: VmEntry): Promise<void> {
    try {
      await this.resume(entry);
    } catch (error) {
      const told = { vm: entry.vm, error: String(error) };
      this.#context.log.error(told, 'the frozen image is not served');
    }
  }

  async #sweepServed(): Promise<void> {
    const { host, world, log } = this.#context;
    for (const [vm, served] of this.#served) {
      const entry = await readEntry(world, vm);
      const isOver = entry === null || (entry.owner !== host && entry.phase === 'owned');
      const idleMs = world.nowMs() - served.sinceMs;
      if (served.hasFailed && entry !== null && halfOfPostCopy(entry, host) === 'source') {
        log.warn({ vm }, 'serving the frozen image has failed: it is tried again');
        await this.#turns.take(vm, async () => {
          await this.#close(vm);
          await this.takeUp(entry);
        });
      } else if (isOver && idleMs >= timing.sessionUnattendedMsMax) {
        await this.#turns.take(vm, async () => {
          await this.#close(vm);
          await this.#vms.remove(vm);
        });
      }
    }
  }

  /**
   * Sessions that nobody waits for end by the ledger's rules, so that a terminated workflow leaves
   * a VM that runs and a migration that ends.
   */
  async sweep(): Promise<void> {
    await this.#sweepServed();
    for (const [vm, { migration, move }] of this.#moves) {
      if (move.needsSuccessor) {
        const left = await readEntry(this.#context.world, vm);
        await this.#turns.take(vm, async () => {
          await this.#close(vm);
          if (left !== null) await this.takeUp(left);
        });
        continue;
      }
      if (move.isClosed && await this.#context.hypervisor.vmmPid(vm) === null) {
        // Dead in the hand-over: what looks after VMs without a VMM starts it again.
        await this.#turns.take(vm, () => this.#close(vm));
        continue;
      }
      if (move.phase === 'ended' && await this.#isDeclined(vm)) {
        // What looks after VMs that stand asks the ledger to give it back.
        await this.#turns.take(vm, () => this.#close(vm));
        continue;
      }
      const idleMs = this.#context.world.nowMs() - move.attendedAtMs;
      if (idleMs < timing.sessionUnattendedMsMax) continue;
      const entry = await readEntry(this.#context.world, vm);
      if (entry === null || (entry.owner !== this.#context.host && entry.phase === 'owned')) {
        this.#context.log.warn({ vm, migration }, 'nobody released the source: it is released now');
        await this.#turns.take(vm, async () => {
          await this.#close(vm);
          await this.#vms.remove(vm);
        });
      } else if (move.phase !== 'switchover' && move.phase !== 'post-copy'
        && entry.owner === this.#context.host) {
        this.#context.log.warn({ vm, migration, idleMs }, 'nobody attends the move: it is aborted');
        await move.abort('nobody attended the move');
        if (entry.phase === 'preparing' && entry.migration !== null) {
          await proposeUntilAnswered(this.#context.world, [{
            kind: 'abort', vm, migration: entry.migration, epoch: entry.epoch,
            reason: 'nobody attended the move',
          }]);
        }
        await this.#close(vm);
      }
    }
  }

  /** It was handed over, and the start that the target had recorded is taken back. */
  async #isDeclined(vm: VmName): Promise<boolean> {
    const { world, host } = this.#context;
    const entry = await readEntry(world, vm);
    return entry?.phase === 'unsettled' && entry.previous === host
      && entry.lastStarted < entry.epoch;
  }

  async closeAll(): Promise<void> {
    for (const vm of [...this.#moves.keys(), ...this.#served.keys()]) await this.#close(vm);
  }

  async #close(vm: VmName): Promise<void> {
    const known = this.#moves.get(vm);
    this.#moves.delete(vm);
    await known?.move.close();
    const served = this.#served.get(vm);
    this.#served.delete(vm);
    await served?.close();
  }

  async #attended<T>(move: SourceMove, work: Promise<T>): Promise<T> {
    move.attend();
    const timer = setInterval(() => move.attend(), attendEveryMs);
    try {
      return await work;
    } finally {
      clearInterval(timer);
      move.attend();
    }
  }

  #find(input: StepInput): SourceMove {
    const known = this.#moves.get(input.vm);
    if (known?.migration === input.migration) return known.move;
    throw new CodedError('migration/not-here', `${input.migration} on ${this.#context.host}`);
  }

  async #open(input: CopyInput): Promise<SourceMove> {
    return this.#turns.take(input.vm, async () => {
      const known = this.#moves.get(input.vm);
      const attempt = input.endpoint.session;
      if (known?.migration === input.migration) {
        if (known.attempt === attempt || !known.move.isBeforeStop) return known.move;
        await known.move.abort('a fresh attempt');
        await this.#close(input.vm);
      } else if (known !== undefined) {
        if (known.move.phase !== 'ended') {
          throw new CodedError('migration/open', `${known.migration} is under way`);
        }
        await this.#close(input.vm);
      }
      const entry = await this.#vms.ownEntry(input.vm);
      if (entry.phase !== 'preparing' || entry.migration !== input.migration) {
        throw new CodedError('migration/cancelled', `${input.migration} is not open in the ledger`);
      }
      const move = await this.#make(input, known?.migration === input.migration);
      this.#moves.set(input.vm, { migration: input.migration, move, attempt });
      return move;
    });
  }

  async #make(input: CopyInput, hasBegun: boolean): Promise<SourceMove> {
    const { hypervisor, engine, config, host, world, revoked, log } = this.#context;
    const { vm, migration, epoch, policy, endpoint } = input;
    const [running, identity, monitor, gates, note] = await Promise.all([
      hypervisor.inspect(vm), hypervisor.identity(vm), hypervisor.monitor(vm),
      this.#context.gatesOf(vm), this.#context.readNote(vm),
    ]);
    const isSuccessor = hasBegun || (note?.side === 'source' && note.migration === migration);
    if (isSuccessor && running.runState === 'paused') {
      throw new CodedError('runner/session-lost', `${vm} stands for its hand-over, no runner`);
    }
    if (identity.imageStamp !== epoch || identity.memoryPath === null) {
      throw new CodedError(
        'ownership/refused', `the image is stamped ${identity.imageStamp}, the epoch is ${epoch}`,
      );
    }
    await monitor.prepareMigration();
    const sockets = hypervisor.paths(vm).runDirectory;
    const deviceStateSocket = join(sockets, 'device-out.sock');
    const disks = running.disks.filter(({ shared }) => shared === undefined);
    const diskSockets = disks.map(({ name }) => join(sockets, `mirror-${name}.sock`));
    const session = engine.openSource({
      migration, epoch,
      target: {
        address: endpoint.laneAddress, port: endpoint.lanePort,
        identity: identityUri({ role: 'host', name: input.target }),
      },
      laneCount: policy.laneCount,
      tls: { ...config.tls, revokedSerials: revoked.entries().map(({ serial }) => serial) },
      memoryPath: identity.memoryPath,
      memoryBytes: bytes(running.memoryBytes),
      vmmPid: running.vmmPid,
      deviceStateSocket,
      disks: diskSockets.map((socket) => ({ socket })),
      socketUid: identity.uid,
      bandwidthBytesPerSecond: bytesPerSecond(policy.bandwidthBytesPerSecond),
      downtimeBudgetMs: millis(policy.downtimeBudgetMs),
      postCopy: policy.postCopy !== 'never',
      balloon: running.balloon,
      deadlineMs: millis(policy.deadlineMs),
      exactness: policy.exactness ?? defaultExactness,
      planted: await plantedFault(config.holdDirectory, vm, 'source'),
    });
    const moveLog = log.child({ vm, migration });
    return new SourceMove({
      migration, vm, epoch, policy, session, deviceStateSocket, diskSockets, isSuccessor,
      lanes: {
        address: endpoint.laneAddress, port: endpoint.lanePort, count: policy.laneCount,
        bandwidthBytesPerSecond: policy.bandwidthBytesPerSecond,
      },
      target: input.target,
      ...barredSource(this.#context.points, vm, {
        world, gates,
        vmm: sourceVmm({
          hypervisor, monitor, vm, incarnation: running.incarnation, vmmPid: running.vmmPid,
        }),
      }),
      disks: new MirrorSet({ qmp: monitor.qmp, disks, log: moveLog }),
      openLink: () => openPeerLink(
        { address: endpoint.peerAddress, port: endpoint.peerPort, host: input.target },
        { material: config.tls, revoked },
        { version: 1, kind: 'hello', migration, epoch },
      ),
      log: moveLog.child({ host }),
    });
  }
}
