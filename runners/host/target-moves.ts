/**
 * Moves towards this host: one TargetMove a VM, from preflight to the running VM. Decides what may
 * be prepared, what has to be discarded, and answers the source's hello.
 */
import { defaultExactness, plainReport } from '../../contracts/exactness.ts';
import type { CheckProgress, ExactnessReport } from '../../contracts/exactness.ts';
import { CodedError } from '../../contracts/failures.ts';
import { identityUri, type HostName, type VmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { HostActivities, StepInput, TargetEndpoint } from '../../contracts/migration.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { bytes, pageSizeBytes } from '../../contracts/units.ts';
import { raiseVmm } from '../cpu-priority.ts';
import { openExports } from '../hypervisor/disk-mirror.ts';
import type { TargetSession } from '../data-plane/sessions.ts';
import type { HostContext } from './host-context.ts';
import { adoptLeft, isLeft } from './left-target.ts';
import { proposeUntilAnswered, readEntry } from './move/ledger-steps.ts';
import { barredTarget } from './move/barred-ports.ts';
import type { GreetingRefusal, PeerGreeter } from './move/peer-link.ts';
import { halfOfPostCopy, mayRemove, ResumedTarget } from './move/post-copy.ts';
import { ofTarget, TargetMove } from './move/target-move.ts';
import { observeTarget } from './observe-target.ts';
import { plantedDelayMs, plantedFault } from './planted-faults.ts';
import { preflight } from './preflight.ts';
import { sinceStart } from './since-start.ts';
import type { Turns } from './turns.ts';
import { targetVmm } from './vm-ports.ts';
import { newIncarnation, type VmOperations } from './vm-operations.ts';

type PrepareInput = Parameters<HostActivities['prepareTarget']>[0];
type CheckInput = Parameters<HostActivities['checkTarget']>[0];

interface KnownTarget {
  readonly migration: string;
  readonly source: HostName;
  readonly epoch: number;
  readonly move: Pick<TargetMove, 'stage' | 'outcome' | 'session' | 'isChecked'
    | 'checkProgress' | 'attach' | 'discard' | 'close'>;
}

/** What was found of a VM that stands damaged here, null for any other. */
export async function damageOf(
  context: Pick<HostContext, 'readNote'>, vm: VmName,
): Promise<ExactnessReport | null> {
  const note = await context.readNote(vm);
  return note?.stage === 'damaged' ? note.exactness ?? null : null;
}

export class TargetMoves {
  readonly #context: HostContext;
  readonly #turns: Turns;
  readonly #vms: VmOperations;
  readonly #moves = new Map<VmName, KnownTarget>();

  constructor(context: HostContext, turns: Turns, vms: VmOperations) {
    this.#context = context;
    this.#turns = turns;
    this.#vms = vms;
  }

  has(vm: VmName): boolean {
    return this.#moves.has(vm);
  }
  get count(): number {
    return this.#moves.size;
  }

  /** Preflight at the target; touches nothing. */
  async check(input: CheckInput): Promise<void> {
    const known = this.#moves.get(input.vm);
    if (known?.migration === input.migration) return;
    const entry = await readEntry(this.#context.world, input.vm);
    const seen = await observeTarget(this.#context, input.running, entry);
    const refusal = preflight(input.running, this.#context.facts, seen);
    if (refusal !== null) throw new CodedError(refusal.code, refusal.detail);
  }

  prepare(input: PrepareInput): Promise<TargetEndpoint> {
    return this.#turns.take(input.vm, async () => {
      const { config, lanes, facts } = this.#context;
      const endpointOf = (session: string): TargetEndpoint => ({
        peerAddress: config.peer.address,
        peerPort: facts.peerPort,
        laneAddress: config.lanes.address,
        lanePort: lanes.port,
        session,
      });
      const known = this.#moves.get(input.vm);
      // Another name each time: the source begins a session of its own for each attempt.
      const session = newIncarnation();
      if (known?.migration === input.migration && known.move.stage !== 'ended') {
        return endpointOf(session);
      }
      const entry = await readEntry(this.#context.world, input.vm);
      if (entry?.phase !== 'preparing' || entry.migration !== input.migration) {
        throw new CodedError('migration/cancelled', `${input.migration} is not open in the ledger`);
      }
      await this.#forget(input.vm);
      if (await isLeft(this.#context, input)) {
        try {
          await this.#make(input, true);
          return endpointOf(session);
        } catch (error) {
          this.#context.log.warn({ vm: input.vm, error: String(error) }, 'not adopted: made anew');
        }
      }
      // Whatever is left of an earlier try is nobody's: the ledger says that another host owns it.
      await this.#vms.remove(input.vm);
      await this.#make(input, false);
      return endpointOf(session);
    });
  }

  async #make(input: PrepareInput, adopted: boolean): Promise<void> {
    const { hypervisor, lanes, world, log, config } = this.#context;
    const { vm, migration, epoch, source, running, policy } = input;
    const exactness = policy.exactness ?? defaultExactness;
    const fresh = newIncarnation();
    const { monitor, incarnation } = adopted ? await adoptLeft(this.#context, vm) : {
      monitor: await hypervisor.createTarget({ running, incarnation: fresh }), incarnation: fresh };
    let session: TargetSession | null = null;
    try {
      const paths = hypervisor.paths(vm);
      const disks = running.disks
        .flatMap(({ name, shared }) => (shared === undefined ? [name] : []));
      await openExports(monitor.qmp, { disks, socketPath: paths.nbdSocket });
      const [identity, look] = await Promise.all([hypervisor.identity(vm), hypervisor.look(vm)]);
      if (identity.memoryPath === null || look.vmmPid === null) {
        throw new CodedError('vm/start-failed', `the incoming VMM of ${vm} ended at once`);
      }
      // Nothing of it runs before it is resumed, and then the move is over but for the announcing.
      await raiseVmm(look.vmmPid, { session: true });
      session = lanes.expect({
        migration, epoch,
        sourceIdentity: identityUri({ role: 'host', name: source }),
        memoryPath: identity.memoryPath,
        memoryBytes: bytes(running.memoryBytes),
        vmmPid: look.vmmPid,
        deviceStateSocket: paths.incomingSocket,
        disks: disks.map((exportName) => ({ nbdSocket: paths.nbdSocket, exportName })),
        postCopyAllowed: policy.postCopy !== 'never',
        balloon: running.balloon,
        adopted,
        exactness,
        planted: await plantedFault(config.holdDirectory, vm, 'target'),
      });
      if (!adopted) await monitor.armIncoming(paths.incomingSocket);
      await world.note(vm, {
        version: 1, migration, side: 'target', epoch, peer: source, stage: 'open',
      });
      const move = new TargetMove({
        migration, vm, source, epoch, session, exactness,
        pageCount: running.memoryBytes / pageSizeBytes,
        checkAfterMs: timing.exactnessCheckAfterMs
          + await plantedDelayMs(config.holdDirectory, vm),
        ...barredTarget(this.#context.points, vm, {
          world, gates: await this.#context.gatesOf(vm),
          vmm: targetVmm({
            hypervisor, monitor, vm, incarnation, vmmPid: look.vmmPid, hasDisks: disks.length > 0,
            holdDirectory: config.holdDirectory,
          }),
        }),
        log: log.child({ vm, migration }),
      });
      this.#moves.set(vm, { migration, source, epoch, move });
    } catch (error) {
      await session?.close();
      await this.#vms.remove(vm);
      throw ofTarget(error);
    }
  }

  /**
   * Goes on with the post-copy that a runner before this one has left, or that has failed here.
   * The guest's faults are served again when it resolves. Failure: engine/* when what arrived is
   * not known any more; the guest's faulting vCPUs stay where they are then.
   */
  async resume(entry: VmEntry): Promise<void> {
    const { hypervisor, lanes, host, log } = this.#context;
    const { vm, migration, previous, ready, startedBy } = entry;
    if (halfOfPostCopy(entry, host) !== 'target' || this.#moves.has(vm)) return;
    const [{ memoryPath }, vmmPid, spec] = await Promise.all([
      hypervisor.identity(vm), hypervisor.vmmPid(vm), hypervisor.spec(vm),
    ]);
    if (migration === null || previous === null || ready === null || memoryPath === null
      || vmmPid === null || startedBy === null) {
      throw new CodedError('vm/not-running', `the post-copy of ${vm} has no VMM here any more`);
    }
    const epoch = entry.epoch - 1;
    const session = lanes.resume({
      migration, epoch,
      sourceIdentity: identityUri({ role: 'host', name: previous }),
      memoryPath,
      memoryBytes: bytes(spec.memoryBytes),
      vmmPid,
      deviceStateSocket: hypervisor.paths(vm).incomingSocket,
      disks: [],
      postCopyAllowed: true,
      balloon: false,
      adopted: false,
      exactness: 'off',
      planted: null,
    });
    const moveLog = log.child({ vm, migration });
    const { digest } = ready;
    const move = new ResumedTarget({ session, digest, epoch: entry.epoch, log: moveLog });
    this.#moves.set(vm, { migration, source: previous, epoch, move });
    try {
      await session.waitMemoryIn();
    } catch (error) {
      await this.#forget(vm);
      throw error;
    }
    moveLog.warn({ missingPages: session.snapshot().missingPages }, 'post-copy goes on');
  }

  /** The source's runner says hello; only the host that the ledger named may. */
  readonly greet: PeerGreeter = (hello, from) => {
    for (const known of this.#moves.values()) {
      if (known.migration !== hello.migration) continue;
      const refused = (detail: string): GreetingRefusal => ({ code: 'link/refused', detail });
      if (known.source !== from) return refused(`${from} is not the source of ${hello.migration}`);
      if (known.epoch !== hello.epoch) {
        return refused(`epoch ${hello.epoch} is not ${known.epoch}`);
      }
      return (link) => known.move.attach(link);
    }
    // Only the workflow sends sources here, after it was prepared: the runner forgot by a restart.
    return {
      code: 'runner/session-lost', detail: `no move ${hello.migration} is prepared here any more`,
    };
  };

  peekCheck({ vm, migration }: StepInput): CheckProgress | null {
    const known = this.#moves.get(vm);
    return known?.migration === migration ? known.move.checkProgress() : null;
  }

  /** Resolves when the guest runs, every page is here and the memory was compared. */
  async verify(input: StepInput): ReturnType<HostActivities['verifyTarget']> {
    if (!this.#moves.has(input.vm)) await this.#takeUp(input.vm);
    const known = this.#moves.get(input.vm);
    if (known?.migration === input.migration) {
      const outcome = await known.move.outcome;
      const since = await sinceStart(this.#context, input);
      if (since !== null) return since;
      if (outcome.kind === 'running') {
        return { digest: outcome.digest, exactness: outcome.exactness };
      }
      const left = await readEntry(this.#context.world, input.vm);
      // The guest runs, its pages are still to come: the sweep takes it up, the step comes again.
      const isLeft = left !== null && halfOfPostCopy(left, this.#context.host) === 'target';
      const { code, detail } = outcome;
      if (isLeft) throw new CodedError('migration/not-here', `${code}: ${detail}`);
      throw new CodedError(code, detail);
    }
    const since = await sinceStart(this.#context, input);
    if (since !== null) return since;
    const entry = await this.#vms.ownEntry(input.vm);
    const { runState } = await this.#context.hypervisor.look(input.vm);
    const damage = await damageOf(this.#context, input.vm);
    if (entry.ready === null || (damage === null && runState !== 'running')) {
      throw new CodedError('vm/not-running', `${input.vm} is ${runState} on ${entry.owner}`);
    }
    const exactness = damage
      ?? plainReport('unverified', 'the runner of the target was replaced before it was compared');
    return { digest: entry.ready.digest, exactness };
  }

  /**
   * Inside of its turn: lets go of a VM whose VMM ended after its start, so that it is looked after
   * like any other. False while the move itself has to end it.
   */
  async letGo(vm: VmName): Promise<boolean> {
    const known = this.#moves.get(vm);
    if (known === undefined) return true;
    const isOver = (known.move.stage === 'running' || known.move.stage === 'ended')
      && await this.#context.hypervisor.vmmPid(vm) === null;
    if (isOver) await this.#forget(vm);
    return isOver;
  }

  /** See HostActivities: a VM that stands damaged goes on or boots cold. */
  resolveDamage(
    input: Parameters<HostActivities['resolveDamage']>[0],
  ): ReturnType<HostActivities['resolveDamage']> {
    const { vm, choice } = input;
    return this.#turns.take(vm, async () => {
      const { hypervisor, world, log } = this.#context;
      const entry = await this.#vms.ownEntry(vm);
      const { runState } = await hypervisor.look(vm);
      if (await damageOf(this.#context, vm) === null) {
        if (runState === 'running') {
          return { runState, incarnation: entry.startedBy, epoch: entry.epoch };
        }
        throw new CodedError('vm/not-running', `${vm} is ${runState} and not damaged`);
      }
      log.warn({ vm, choice }, 'an operator decides about damaged memory');
      await this.#forget(vm);
      const canGoOn = runState === 'paused' || runState === 'running';
      const reached = choice === 'accept' && canGoOn
        ? await this.#vms.goOn(entry) : await this.#vms.startCold(entry);
      await world.note(vm, null);
      return reached;
    });
  }

  #takeUp(vm: VmName): Promise<void> {
    return this.#turns.take(vm, async () => {
      const entry = await readEntry(this.#context.world, vm);
      if (entry !== null) await this.resume(entry);
    });
  }

  /** Compensation: what was prepared goes, unless the ledger made this host the owner. */
  async discard(input: StepInput): Promise<void> {
    const known = this.#moves.get(input.vm);
    if (known !== undefined && known.migration !== input.migration) return;
    const entry = await readEntry(this.#context.world, input.vm);
    if (entry?.owner === this.#context.host) {
      throw new CodedError('ownership/refused', `${input.vm} belongs to this host`);
    }
    if (known !== undefined) {
      known.move.discard('the move was given up');
      await known.move.outcome;
    }
    await this.#turns.take(input.vm, async () => {
      await this.#forget(input.vm);
      await this.#vms.remove(input.vm);
    });
  }

  /**
   * Ends what nobody asks for any more: a prepared target whose migration is over, and a running
   * one that control never settled.
   */
  async sweep(): Promise<void> {
    const { world, host, log } = this.#context;
    for (const [vm, { migration, move, epoch }] of this.#moves) {
      const entry = await readEntry(world, vm);
      const isOpen = entry?.migration === migration && entry.phase !== 'owned';
      if (entry !== null && move.stage === 'ended' && halfOfPostCopy(entry, host) === 'target') {
        log.warn({ vm, migration }, 'post-copy has failed here: it is taken up again');
        await this.#forget(vm);
        await this.#takeUp(vm).catch((error: unknown) => {
          log.error({ vm, error: String(error) }, 'post-copy is not taken up');
        });
      } else if (move.stage === 'running' && entry?.owner === host) {
        if (entry.phase === 'owned') await this.#forgetSettled(vm);
        else await this.#settleAlone(vm, migration, epoch + 1, move);
      } else if (!isOpen && entry?.owner !== host) {
        log.warn({ vm, migration }, 'the migration is over: nothing of it is kept');
        move.discard('the migration is over');
        await move.outcome;
        await this.#turns.take(vm, async () => {
          if (this.#moves.get(vm)?.move !== move) return;
          await this.#forget(vm);
          if (mayRemove(await readEntry(world, vm), host)) await this.#vms.remove(vm);
        });
      }
    }
  }

  /** Settle by the target; the ledger takes it only after its own patience. */
  async #settleAlone(
    vm: VmName, migration: string, epoch: number, move: KnownTarget['move'],
  ): Promise<void> {
    if (move.session.snapshot().state !== 'whole' || !move.isChecked) return;
    if (await damageOf(this.#context, vm) !== null) return;
    const entry = await readEntry(this.#context.world, vm);
    if (entry?.migration !== migration || entry.migration === null) return;
    await proposeUntilAnswered(this.#context.world, [
      { kind: 'settle', vm, migration: entry.migration, epoch, missingPageCount: 0 },
    ]);
  }

  /** The VM went on from here: what its arrival still holds of its memory file goes with it. */
  async left(vm: VmName): Promise<void> {
    if (this.#moves.get(vm)?.move.stage !== 'running') return;
    await this.#turns.take(vm, () => this.#forget(vm));
  }

  async closeAll(): Promise<void> {
    for (const vm of this.#moves.keys()) await this.#forget(vm);
  }

  async #forgetSettled(vm: VmName): Promise<void> {
    await this.#forget(vm);
    await this.#context.hypervisor.forgetArrivals(vm);
  }

  async #forget(vm: VmName): Promise<void> {
    const known = this.#moves.get(vm);
    this.#moves.delete(vm);
    await known?.move.close();
  }
}
