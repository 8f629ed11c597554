/**
 * The source's half of one move: connects, follows disks and memory, stops the VM and hands it
 * over, or takes it back when the ledger says so. It decides the order; convergence is the
 * engine's, ownership the ledger's, and what to do while the VM stands is source-decision.ts.
 */
import { CodedError, failureReport, type FailureReport } from '../../../contracts/failures.ts';
import { codedErrorOf } from '../../../contracts/foreign-errors.ts';
import type {
  SessionCommand, SessionOutcome, SessionProgress } from '../../../contracts/migration.ts';
import type { TransferRecord } from '../../../contracts/ownership.ts';
import type { ConvergenceDecision } from '../../data-plane/sessions.ts';
import { transferFigures } from './figures.ts';
import { tendFrozenImage } from './frozen-image.ts';
import {
  giveUpCause, lostWithRunner, outcomeBeforeStop, requireConverged, whyTakenBack,
} from './give-up-cause.ts';
import { Interruption } from './interruption.ts';
import { proposeUntilAnswered, readEntry, sourceNote } from './ledger-steps.ts';
import { openPatiently } from './patient-link.ts';
import type { PeerMessage } from './peer-messages.ts';
import type { PeerConversation, SourceMoveOptions } from './ports.ts';
import { ProgressLooks } from './progress.ts';
import { applyCommand } from './session-command.ts';
import { nextSourceStep, Patience, patienceMs } from './source-decision.ts';

/** How often the ledger is asked while the VM stands and nothing is heard, ms. */
const lookEveryMs = 50;
/** A stop takes a few ms; after this long a mirror hangs on its link, ms. */
const stopPatienceMs = 500;

type RunningMessage = Extract<PeerMessage, { kind: 'running' }>;
type Phase = SessionProgress['phase'];

/** One try to move a VM away. Methods may be called again and again; they join what runs. */
export class SourceMove {
  readonly #options: SourceMoveOptions;
  readonly #interruption: Interruption;
  readonly #pass: { leave(): void };
  #phase: Phase = 'connecting';
  #stopped = false;
  #closed = false;
  #link: PeerConversation | null = null;
  #clock = { offsetMs: 0, errorMs: Infinity };
  #connecting: Promise<void> | null = null;
  #syncing: Promise<void> | null = null;
  #running: Promise<SessionOutcome> | null = null;
  #paused = false;
  readonly #looks = new ProgressLooks();
  #targetRuns: RunningMessage | null = null;
  #targetFailure: FailureReport | null = null;
  #wake = Promise.withResolvers<void>();
  #startedAtMs: number;
  #connectedMs: number;
  #memoryBegunMs: number;
  #attendedAtMs: number;

  constructor(options: SourceMoveOptions) {
    this.#options = options;
    this.#pass = options.gates.enter(options.epoch, options.session);
    const nowMs = options.world.nowMs();
    [this.#startedAtMs, this.#attendedAtMs] = [nowMs, nowMs];
    [this.#connectedMs, this.#memoryBegunMs] = [nowMs, nowMs];
    this.#interruption = new Interruption(options.vmm.ended);
  }

  get phase(): Phase { return this.#phase; }
  get attendedAtMs(): number { return this.#attendedAtMs; }
  /** The session that serves a started target broke; another one may take over. */
  get needsSuccessor(): boolean {
    return this.#phase === 'post-copy' && this.#options.session.snapshot().failure !== null;
  }
  /** This session has not stopped the VM; its engine can't be asked any more. */
  get isBeforeStop(): boolean { return !this.#stopped; }
  get isClosed(): boolean { return this.#closed; }
  attend(): void { this.#attendedAtMs = this.#options.world.nowMs(); }

  progress(): SessionProgress {
    const { session, disks, world } = this.#options;
    const [memory, nowMs] = [session.snapshot(), world.nowMs()];
    return this.#looks.next({
      phase: this.#phase, paused: this.#paused, memory, disks: disks.progress(), nowMs });
  }

  /** Link, lanes, disks in sync. Failures: link/*, disk/mirror, migration/cancelled. */
  async syncDisks(): Promise<void> {
    this.#syncing ??= this.#syncDisks();
    await this.#interruption.race(this.#syncing).catch(async (error: unknown) => {
      const lost = lostWithRunner(error, this.#options.isSuccessor);
      throw lost === error ? await this.#causeOf(error) : lost;
    });
  }

  /** Everything from round 0 on; see HostOperations.copyMemoryAndSwitchOver. */
  run(): Promise<SessionOutcome> {
    this.#running ??= this.#run();
    return this.#running;
  }

  /** Failures: migration/past-return, input/invalid. */
  async command(command: SessionCommand): Promise<void> {
    const { session, disks } = this.#options;
    if (this.#phase === 'switchover' || this.#phase === 'post-copy' || this.#phase === 'ended') {
      if (command.kind !== 'set-bandwidth' || this.#phase !== 'post-copy') {
        throw new CodedError('migration/past-return', `${command.kind}: the VM is being handed over`);
      }
    }
    if (command.kind === 'set-bandwidth') this.#looks.forgetPace();
    if (command.kind === 'cancel') this.#interruption.cancel(command.by);
    this.#paused = command.kind === 'pause' || (this.#paused && command.kind !== 'resume');
    await applyCommand(command, { session, disks });
  }

  /** Ends the try from outside while the VM still runs; later the ledger decides, not we. */
  async abort(by: string): Promise<void> {
    this.#interruption.cancel(by);
    if (this.#running !== null) await this.#running.catch(() => undefined);
    else await this.#undo();
  }

  async close(): Promise<void> {
    this.#phase = 'ended';
    this.#closed = true;
    this.#link?.close();
    await this.#options.session.close();
    this.#pass.leave();
  }

  async #connect(): Promise<void> {
    const link = await openPatiently(this.#options, () => this.#closed);
    link.listen((message) => this.#receive(message));
    void link.gone.then((reason) => {
      this.#options.log.warn({ reason: reason.message }, 'peer link is gone');
      if (this.#link === link) this.#link = null;
      this.#cutDisks();
      this.#interruption.lose(`the link to the target: ${reason.message}`);
      this.#rouse();
    });
    this.#link = link;
    const [clock] = await Promise.all([link.compareClocks(), this.#options.session.connect()]);
    this.#clock = clock;
    this.#connectedMs = this.#options.world.nowMs();
  }

  #cutDisks(): void {
    this.#options.disks.cut().catch((error: unknown) => {
      this.#options.log.error({ error: String(error) }, 'the mirrors could not be cut');
    });
  }

  async #syncDisks(): Promise<void> {
    this.#connecting ??= this.#connect();
    await this.#connecting;
    this.#phase = 'disk';
    const { disks, diskSockets, policy, world, vm } = this.#options;
    await disks.clear();
    await world.note(vm, sourceNote(this.#options, 'open'));
    await disks.start(diskSockets);
    if (policy.bandwidthBytesPerSecond > 0) await disks.setBandwidth(policy.bandwidthBytesPerSecond);
    await disks.synchronised();
  }

  #receive(message: PeerMessage): void {
    if (message.kind === 'running') this.#targetRuns = message;
    if (message.kind === 'gave-up') {
      this.#targetFailure = failureReport(message.code, message.detail);
    }
    this.#rouse();
  }

  #rouse(): void {
    this.#wake.resolve();
    this.#wake = Promise.withResolvers<void>();
  }

  async #run(): Promise<SessionOutcome> {
    const { log, session, vmm } = this.#options;
    let decision: ConvergenceDecision;
    try {
      await this.syncDisks();
      this.#phase = 'memory';
      this.#memoryBegunMs = this.#options.world.nowMs();
      log.info({ phase: 'memory' }, 'copying memory');
      vmm.copying();
      session.startPreCopy();
      const converged = Promise.race([session.waitConverged(), this.#targetLost()]);
      decision = await this.#interruption.race(converged);
      requireConverged(decision);
      await this.#interruption.race(this.#options.disks.tighten());
    } catch (error) {
      return this.#giveUpRunning(error);
    }
    this.#phase = 'switchover';
    log.info({ phase: 'switchover', reason: decision.reason }, 'handing over');
    return this.#handOver(decision)
      // Its VMM is dead, most likely: nothing of this session can help it any more.
      .catch((error: unknown) => this.close().then((): never => { throw error; }))
      .finally(() => vmm.moveOver());
  }

  /** Rejects when the target says that it can't go on while the VM still runs here. */
  async #targetLost(): Promise<never> {
    for (;;) {
      if (this.#targetFailure !== null) {
        throw new CodedError(this.#targetFailure.code, this.#targetFailure.detail);
      }
      await this.#wake.promise;
    }
  }

  #causeOf(error: unknown): Promise<CodedError> {
    return giveUpCause(error, {
      lost: this.#link === null ? null : () => this.#targetLost(),
      told: () => this.#targetFailure,
      sleep: (ms) => this.#options.world.sleep(ms),
    });
  }

  /** The VM never stopped: nothing to ask the ledger, the workflow aborts the migration there. */
  async #giveUpRunning(error: unknown): Promise<SessionOutcome> {
    const coded = await this.#causeOf(error);
    this.#options.vmm.moveOver();
    await this.#undo();
    this.#options.log.warn({ code: coded.code, detail: coded.detail }, 'the move is given up');
    return outcomeBeforeStop(coded);
  }

  async #undo(): Promise<void> {
    const { session, disks, log, world, vm } = this.#options;
    const ends = await Promise.allSettled([session.abort(), disks.cancel(), world.note(vm, null)]);
    const failed = ends.filter((end) => end.status === 'rejected');
    for (const { reason } of failed) log.error({ error: String(reason) }, 'undoing failed');
    await this.close();
  }

  async #handOver(decision: ConvergenceDecision): Promise<SessionOutcome> {
    const { world, vmm, vm, log } = this.#options;
    this.#stopped = true;
    await world.note(vm, sourceNote(this.#options, 'quiescing'));
    // STOP waits for the guest's writes, and those for a target that may have gone silent.
    const patience = setTimeout(() => this.#cutDisks(), stopPatienceMs);
    const stop = await vmm.stop().finally(() => clearTimeout(patience));
    const stoppedMs = world.nowMs();
    let record: TransferRecord | null = null;
    try {
      record = await this.#sendLast(decision);
    } catch (error) {
      const coded = codedErrorOf(error);
      log.warn({ code: coded.code, detail: coded.detail }, 'the last pass failed');
      this.#targetFailure ??= failureReport(coded.code, coded.detail);
    }
    const end = await this.#awaitDecision();
    if (end === 'handed-over' && record !== null) {
      return this.#handedOver({ decision, record, stopEventMs: stop.eventMs, stoppedMs });
    }
    return this.#takenBack(end === 'handed-over' ? 'the record was lost' : end);
  }

  /** Memory, device state and disks at the same time, then Quiesced with what they came to. */
  async #sendLast(decision: ConvergenceDecision): Promise<TransferRecord> {
    const { world, vmm, vm, migration, epoch, session, disks, deviceStateSocket } = this.#options;
    const mode = decision.decision === 'post-copy' ? 'post-copy' as const : 'pre-copy' as const;
    const hasMirrors = disks.progress().mode !== 'none';
    const drained = hasMirrors ? disks.drained() : Promise.resolve();
    // Without mirrors at once, before the lanes wake up and take the CPUs.
    const send = (): Promise<void> => vmm.sendDeviceState(deviceStateSocket);
    const device = hasMirrors ? drained.then(send) : send();
    device.catch(() => undefined);
    const memory = session.finishMemory({ mode });
    const told = drained.then(() => this.#link?.send({
      version: 1, kind: 'disks-drained', diskDigests: [...session.snapshot().diskDigests] }));
    const [finished] = await Promise.all([memory, told]);
    const record = world.sign({
      version: 1, migration, epoch,
      digest: finished.digest,
      missingDigest: finished.missingPageCount === 0 ? '' : finished.missingDigest,
      missingPageCount: finished.missingPageCount,
      ioSequence: session.snapshot().ioSequence,
    });
    const quiesced = { kind: 'quiesced' as const, vm, migration, epoch, record };
    const verdict = await proposeUntilAnswered(world, [quiesced]);
    if (!verdict.accepted) throw new CodedError('ownership/refused', verdict.reason);
    this.#link?.send({ version: 1, kind: 'quiesced', record });
    await device;
    return record;
  }

  /** Follows the ledger until it says where the VM runs; answers the epoch to resume under. */
  async #awaitDecision(
  ): Promise<'handed-over' | { readonly epoch: number } | { readonly lost: string }> {
    const { world, vm, migration, epoch } = this.#options;
    const patience = new Patience(world.nowMs());
    for (;;) {
      const wake = this.#wake.promise;
      const askedMs = world.nowMs();
      // Before the read: what the target did before it gave up is in the entry then.
      const targetGaveUp = this.#targetFailure !== null || this.#link === null;
      const entry = await readEntry(world, vm);
      const step = nextSourceStep({
        host: world.host, migration, epoch, entry,
        targetGaveUp, targetRuns: this.#targetRuns !== null,
        waitedMs: patience.waitedMs({ askedMs, answeredMs: world.nowMs() }),
        selfDecisionMs: patienceMs(this.#options.policy),
      });
      switch (step.kind) {
        case 'handed-over':
          return step.kind;
        case 'resume':
          return { epoch: step.epoch };
        case 'lost':
          return { lost: step.reason };
        case 'propose-abort':
        case 'propose-revert':
          await this.#propose(step.kind === 'propose-abort' ? 'abort' : 'revert');
          break;
        case 'wait':
          break;
      }
      await Promise.race([wake, world.sleep(lookEveryMs)]);
    }
  }

  async #propose(kind: 'abort' | 'revert'): Promise<void> {
    const { world, vm, migration, epoch, log } = this.#options;
    const { code, detail } = whyTakenBack(this.#targetFailure, this.#link !== null);
    const reason = `${code}: ${detail}`.slice(0, 500);
    const verdict = await proposeUntilAnswered(world, [
      { kind, vm, migration, epoch: kind === 'abort' ? epoch : epoch + 1, reason },
    ]);
    log.info({ kind, accepted: verdict.accepted }, 'asked the ledger to take the VM back');
  }

  async #takenBack(
    end: { readonly epoch: number } | { readonly lost: string } | string,
  ): Promise<SessionOutcome> {
    const { world, vm, vmm, gates, log } = this.#options;
    const failure = whyTakenBack(this.#targetFailure, this.#link !== null);
    if (typeof end === 'string' || 'lost' in end) {
      const detail = typeof end === 'string' ? end : end.lost;
      log.error({ detail }, 'the image is kept, the ledger does not give it back');
      await this.close();
      return { kind: 'failed', failure: failureReport('ownership/refused', detail), resumed: false };
    }
    await gates.raise(end.epoch);
    const verdict = await proposeUntilAnswered(world, [{
      kind: 'started', vm, epoch: end.epoch, incarnation: vmm.incarnation,
      imageStamp: this.#options.epoch,
    }]);
    if (!verdict.accepted) return this.#takenBack(verdict.reason);
    await gates.bindLease(end.epoch);
    await vmm.stamp(end.epoch);
    await vmm.resume();
    await this.#undo();
    log.info({ epoch: end.epoch }, 'the VM goes on here');
    return { kind: 'failed', failure, resumed: true };
  }

  async #handedOver(facts: {
    readonly decision: ConvergenceDecision;
    readonly record: TransferRecord;
    readonly stopEventMs: number;
    readonly stoppedMs: number;
  }): Promise<SessionOutcome> {
    const { world, vm, gates, session, disks, log } = this.#options;
    await gates.closeNics();
    await world.note(vm, sourceNote(this.#options, 'handed-over'));
    const message = await this.#runningMessage();
    const { missingPageCount: missing } = facts.record;
    const figures = transferFigures({
      nowMs: world.nowMs(),
      startedAtMs: this.#startedAtMs,
      connectedMs: this.#connectedMs,
      memoryBegunMs: this.#memoryBegunMs,
      missingPageCount: missing, clockOffsetMs: this.#clock.offsetMs,
      stopEventMs: facts.stopEventMs,
      stoppedMs: facts.stoppedMs,
      targetMarks: message?.marks ?? null,
      snapshot: session.snapshot(),
      convergence: [disks.progress().said, facts.decision.reason]
        .filter((text) => text !== '').join('; '),
    });
    this.#phase = missing > 0 ? 'post-copy' : 'ended';
    void tendFrozenImage({
      missingPageCount: missing, exactness: this.#options.policy.exactness, session, log,
      served: () => { this.#phase = 'ended'; },
    });
    const entry = await readEntry(world, vm);
    const targetIncarnation = message?.incarnation ?? entry?.startedBy ?? null;
    if (targetIncarnation === null) throw new CodedError('internal', 'a start without incarnation');
    return { kind: 'handed-over', figures, record: facts.record, targetIncarnation };
  }

  /** The target's marks follow its start; without a link the downtime is what the source saw. */
  async #runningMessage(): Promise<RunningMessage | null> {
    const until = this.#options.world.nowMs() + 1000;
    while (this.#targetRuns === null && this.#link !== null && this.#options.world.nowMs() < until) {
      await Promise.race([this.#wake.promise, this.#options.world.sleep(lookEveryMs)]);
    }
    return this.#targetRuns;
  }
}
