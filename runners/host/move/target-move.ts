/**
 * The target's half of one move: from the prepared, paused VMM to the running VM. It decides the
 * order of the take-over (docs/ownership.md, host rule 2) and what is undone when a step fails;
 * bytes are moved by the data plane, QEMU is driven through ports.ts.
 */
import type { Logger } from 'pino';
import type {
  CheckProgress, ExactnessMode, ExactnessReport,
} from '../../../contracts/exactness.ts';
import { CodedError, type FailureCode } from '../../../contracts/failures.ts';
import { codedErrorOf } from '../../../contracts/foreign-errors.ts';
import type { HostName, MigrationId, VmName } from '../../../contracts/identity.ts';
import type { TransferRecord, VmEntry } from '../../../contracts/ownership.ts';
import type { MemoryRecord, TargetSession } from '../../data-plane/sessions.ts';
import { CheckLooks } from './check-looks.ts';
import { checkExactness } from './exactness-check.ts';
import { proposeUntilAnswered, readEntry } from './ledger-steps.ts';
import type { PeerMessage, TargetMarks } from './peer-messages.ts';
import type { MoveWorld, PeerConversation, TargetVmm, VmGates } from './ports.ts';

export interface TargetMoveOptions {
  readonly migration: MigrationId;
  readonly vm: VmName;
  readonly source: HostName;
  /** Epoch of the source; Commit makes it one higher. */
  readonly epoch: number;
  readonly world: MoveWorld;
  readonly vmm: TargetVmm;
  readonly gates: VmGates;
  readonly session: TargetSession;
  readonly exactness: ExactnessMode;
  readonly pageCount: number;
  /** From the start until the memory is compared. */
  readonly checkAfterMs: number;
  readonly log: Logger;
}

/** How the take-over ended. */
export type TakeOver =
  | {
      readonly kind: 'running';
      readonly digest: string;
      readonly epoch: number;
      readonly exactness: ExactnessReport;
    }
  | { readonly kind: 'gave-up'; readonly code: FailureCode; readonly detail: string };

function throwFirst(ends: readonly PromiseSettledResult<unknown>[]): void {
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

/** What passed the gate must be what the source's mirrors sent. Failure: migration/digest. */
function requireEqualDisks(
  received: readonly string[], sent: readonly string[] | undefined,
): void {
  const wrong = sent?.findIndex((digest, disk) => digest !== received[disk]) ?? -1;
  if (wrong === -1) return;
  throw new CodedError('migration/digest', `disk ${wrong}: the mirror's writes add up to`
    + ` ${received[wrong]} here, to ${sent?.[wrong]} at the source`);
}

/** Why a target gives up. The end of the VMM that waits there is not the end of the VM. */
export function ofTarget(error: unknown): CodedError {
  const coded = codedErrorOf(error);
  if (coded.code !== 'vmm/gone' && coded.code !== 'vm/stopped-itself') return coded;
  return new CodedError('migration/target-gone', coded.detail, coded);
}

/** Marks that were not reached stand at this; they never leave the file. */
const unmarked = 0;

/** One try to take a VM over. Made by prepareTarget, ended by its outcome or by discard(). */
export class TargetMove {
  readonly #options: TargetMoveOptions;
  readonly #outcome = Promise.withResolvers<TakeOver>();
  readonly #quiesced = Promise.withResolvers<TransferRecord>();
  /** With what the source's mirrors wrote; undefined from an older source. */
  readonly #disksDrained = Promise.withResolvers<readonly string[] | undefined>();
  readonly #givenUp = Promise.withResolvers<never>();
  readonly #pass: { leave(): void };
  #link: PeerConversation | null = null;
  readonly #sourceGone = Promise.withResolvers<void>();
  #marks: TargetMarks = {
    memoryInMs: unmarked, deviceInMs: unmarked, flushedMs: unmarked, committedMs: unmarked,
    gateRaisedMs: unmarked, startedMs: unmarked, resumeEventMs: unmarked,
  };
  #stage: 'waiting' | 'taking-over' | 'ready' | 'committed' | 'running' | 'ended' = 'waiting';
  #digest = '';
  #isChecked = false;
  readonly #checkLooks = new CheckLooks();
  #nicsOpen: Promise<void> = Promise.resolve();
  #gaveUp: PeerMessage | null = null;

  /** Failure: ownership/refused when the gate here is above the source's epoch. */
  constructor(options: TargetMoveOptions) {
    this.#options = options;
    this.#pass = options.gates.enter(options.epoch, options.session);
    this.#givenUp.promise.catch(() => undefined);
    void options.vmm.ended.then((how) => {
      this.#givenUp.reject(how);
    });
    void this.#takeOver();
  }

  get outcome(): Promise<TakeOver> {
    return this.#outcome.promise;
  }
  get stage(): string {
    return this.#stage;
  }
  /** The images are compared, or the patience for that is over. */
  get isChecked(): boolean {
    return this.#isChecked;
  }
  /** How far the comparison is; null before it begins, once it is over, and without one. */
  checkProgress(): CheckProgress | null {
    const { exactness, session, world, pageCount } = this.#options;
    if (exactness !== 'after-resume' || this.#stage !== 'running' || this.#isChecked) return null;
    const done = session.snapshot().pagesCompared;
    return this.#checkLooks.next({ nowMs: world.nowMs(), done, total: pageCount });
  }
  get session(): TargetSession {
    return this.#options.session;
  }

  /**
   * The source's runner opened its link, possibly again after a cut. A try that has ended before
   * says why: its lanes alone would look like a matter of certificates.
   */
  attach(link: PeerConversation): void {
    this.#link?.close();
    this.#link = link;
    this.#options.vmm.copying();
    void link.gone.then(() => { if (this.#link === link) this.#sourceGone.resolve(); });
    link.listen((message) => this.#receive(message));
    if (this.#gaveUp !== null) link.send(this.#gaveUp);
  }

  /**
   * Gives the try up from outside (workflow's compensation, the sweep). Without effect once Ready
   * is on its way to the ledger: from then on only the ledger decides.
   */
  discard(reason: string): void {
    if (this.#stage !== 'waiting' && this.#stage !== 'taking-over') return;
    this.#givenUp.reject(new CodedError('migration/cancelled', reason));
  }

  /** Lets go of link and session once nothing of the source is needed any more. */
  async close(): Promise<void> {
    this.#link?.close();
    await this.#closeSession();
  }

  async #closeSession(): Promise<void> {
    await this.#options.session.close();
    this.#pass.leave();
  }

  #receive(message: PeerMessage): void {
    if (message.kind === 'quiesced') this.#quiesced.resolve(message.record);
    if (message.kind === 'disks-drained') this.#disksDrained.resolve(message.diskDigests);
  }

  async #takeOver(): Promise<void> {
    const { log } = this.#options;
    try {
      const { memory, quiesced } = await Promise.race([this.#allIn(), this.#givenUp.promise]);
      this.#requireEqual(memory, quiesced);
      await this.#commit(quiesced);
      await this.#start(memory);
    } catch (error) {
      await this.#giveUp(error);
      return;
    }
    this.#stage = 'running';
    const epoch = this.#options.epoch + 1;
    this.#link?.send({
      version: 1, kind: 'running', marks: this.#marks, epoch,
      incarnation: this.#options.vmm.incarnation,
    });
    await this.#openNetwork();
    log.info({ epoch }, 'the VM runs here');
    await this.#awaitWhole(epoch);
  }

  /** Rule 2 up to Ready: memory, device state, disks flushed; each marked when it is in. */
  async #allIn(): Promise<{ memory: MemoryRecord; quiesced: TransferRecord }> {
    const { session, vmm, world } = this.#options;
    const memory = session.waitMemoryIn().then((record) => {
      this.#stage = 'taking-over';
      this.#marks.memoryInMs = world.nowMs();
      return record;
    });
    const device = vmm.loaded().then(() => {
      this.#marks.deviceInMs = world.nowMs();
    }).catch(async (error: unknown) => {
      // A session that fails takes the stream of device state with it: its own reason is the cause.
      if (session.snapshot().failure !== null) await memory;
      throw error;
    });
    const flushed = this.#disksDrained.promise.then(async (written) => {
      await session.flushDisks();
      requireEqualDisks(session.snapshot().diskDigests, written);
      // Not beside the load: QEMU fails it when a disk changes hands meanwhile.
      await device;
      await vmm.closeExports();
      this.#marks.flushedMs = world.nowMs();
    });
    const [record, quiesced] = await Promise.all([
      memory, this.#quiesced.promise, device, flushed,
    ]);
    const { ioSequence } = session.snapshot();
    const missingDigest = record.missingPageCount === 0 ? '' : record.missingDigest;
    return { memory: { ...record, missingDigest, ioSequence }, quiesced };
  }

  #requireEqual(memory: MemoryRecord, quiesced: TransferRecord): void {
    const equal = memory.digest === quiesced.digest
      && memory.missingDigest === quiesced.missingDigest
      && memory.missingPageCount === quiesced.missingPageCount
      && memory.ioSequence.length === quiesced.ioSequence.length
      && memory.ioSequence.every((count, disk) => count === quiesced.ioSequence[disk]);
    if (equal) return;
    throw new CodedError(
      'migration/digest',
      `target has digest ${memory.digest}, ${memory.missingPageCount} missing, disk writes`
        + ` ${memory.ioSequence.join('/')}; source ${quiesced.digest},`
        + ` ${quiesced.missingPageCount}, ${quiesced.ioSequence.join('/')}`,
    );
  }

  /** Ready and Commit in one request; resolves only when the ledger says that this host owns. */
  async #commit(quiesced: TransferRecord): Promise<void> {
    const { world, vm, migration, epoch } = this.#options;
    this.#stage = 'ready';
    const { signature: _theirs, ...fields } = quiesced;
    const record = world.sign(fields);
    const verdict = await Promise.race([
      proposeUntilAnswered(world, [
        { kind: 'ready', vm, migration, epoch, record },
        { kind: 'commit', vm, migration, epoch },
      ]),
      this.#givenUp.promise,
    ]);
    const entry = verdict.accepted ? verdict.entry : await this.#readAfter(verdict.reason);
    if (entry === null || !this.#isOurs(entry)) {
      throw new CodedError('ownership/refused', verdict.accepted ? 'not ours' : verdict.reason);
    }
    this.#stage = 'committed';
    this.#marks.committedMs = world.nowMs();
  }

  async #readAfter(reason: string): Promise<VmEntry | null> {
    this.#options.log.warn({ reason }, 'ledger refused');
    return readEntry(this.#options.world, this.#options.vm);
  }

  #isOurs(entry: VmEntry): boolean {
    const { world, migration, epoch } = this.#options;
    return entry.owner === world.host && entry.migration === migration
      && entry.epoch === epoch + 1 && entry.phase === 'unsettled';
  }

  /**
   * Gate, Started, lease, cont: nothing else that can fail is left. Gate and stamp are written
   * beside Started (docs/decisions/0003-gate-beside-started.md): all three are durable before the
   * first instruction, and a start that was recorded and can't happen is declined.
   */
  async #start(memory: MemoryRecord): Promise<void> {
    const { world, vm, epoch, vmm, gates } = this.#options;
    const raised = gates.raise(epoch + 1).then(() => {
      this.#marks.gateRaisedMs = world.nowMs();
    });
    const started = proposeUntilAnswered(world, [{
      kind: 'started', vm, epoch: epoch + 1, incarnation: vmm.incarnation, imageStamp: epoch,
    }]);
    // Each to its end: a start that is still on its way must not reach the ledger after Declined.
    await Promise.allSettled([started, raised, vmm.stamp(epoch + 1)]).then(throwFirst);
    const verdict = await started;
    if (!verdict.accepted) throw new CodedError('ownership/refused', verdict.reason);
    await gates.bindLease(epoch + 1);
    this.#marks.startedMs = world.nowMs();
    const resumed = vmm.resume();
    // Frames may pass from Started on; they are only in the way while the VMM is asked to go on.
    this.#nicsOpen = gates.openNics();
    this.#nicsOpen.catch(() => undefined);
    this.#marks.resumeEventMs = (await resumed).eventMs;
    this.#digest = memory.digest;
  }

  async #openNetwork(): Promise<void> {
    const { vmm, log } = this.#options;
    try {
      await this.#nicsOpen;
      await vmm.announce();
    } catch (error) {
      log.error({ error: String(error) }, 'the network of the VM could not be opened');
    }
  }

  /**
   * The outcome waits for the last page, however long the link is away in post-copy, and then for
   * the check of the memory, which has a limit.
   */
  async #awaitWhole(epoch: number): Promise<void> {
    const { session, vmm, gates, world, vm, migration, source, log } = this.#options;
    try {
      await session.waitWhole();
      const note = {
        version: 1, migration, side: 'target', epoch: epoch - 1, peer: source,
      } as const;
      const exactness = await checkExactness({
        mode: this.#options.exactness, afterMs: this.#options.checkAfterMs, epoch, session, vmm, gates, log,
        sourceGone: this.#sourceGone.promise,
        noteDamage: (report) => world.note(vm, report === null
          ? { ...note, stage: 'open' } : { ...note, stage: 'damaged', exactness: report }),
      });
      this.#isChecked = true;
      this.#outcome.resolve({ kind: 'running', digest: this.#digest, epoch, exactness });
    } catch (error) {
      const coded = error instanceof CodedError ? error : null;
      this.#stage = 'ended';
      this.#outcome.resolve({
        kind: 'gave-up',
        code: coded?.code ?? 'engine/failed',
        detail: coded?.detail ?? String(error),
      });
    }
  }

  /**
   * Before Commit: the VMM goes, the source hears why. After Commit the VMM is killed first; if it
   * surely ran no instruction the target declines its start, so that the source may take the VM
   * back, else the ledger and the operator decide.
   */
  async #giveUp(error: unknown): Promise<void> {
    const { world, vm, migration, epoch, vmm, log } = this.#options;
    const { code, detail } = ofTarget(error);
    log.warn({ code, detail, stage: this.#stage }, 'the target gives up');
    const committed = this.#stage === 'committed';
    const neverRan = await vmm.kill();
    if (committed && neverRan) {
      const statement = { vm, migration, epoch: epoch + 1, incarnation: vmm.incarnation };
      await proposeUntilAnswered(world, [{
        kind: 'declined', ...statement, signature: world.signDeclined(statement),
      }]);
    }
    this.#stage = 'ended';
    this.#gaveUp = { version: 1, kind: 'gave-up', code, detail: detail.slice(0, 2000) };
    this.#link?.send(this.#gaveUp);
    await this.#closeSession();
    this.#outcome.resolve({ kind: 'gave-up', code, detail });
  }
}
