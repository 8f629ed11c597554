/**
 * The ledger in one process: orders proposals, decides them on top of each other, makes them
 * durable with one sync for all that wait, and only then shows and answers them.
 * It decides order and visibility; the rules are group/ownership's, the bytes group/ledger-log's.
 */
import type { Logger } from 'pino';
import { CodedError } from '../../contracts/failures.ts';
import type { Identity, MigrationId, VmName } from '../../contracts/identity.ts';
import type {
  HostView, LedgerEvent, MigrationEnd, Verdict, VmEntry,
} from '../../contracts/ownership.ts';
import { DurableLog } from '../group/ledger-log/durable-log.ts';
import type { LogStorage } from '../group/ledger-log/log-storage.ts';
import { decide } from '../group/ownership/decide.ts';
import { visibleEntry } from '../group/ownership/decision.ts';
import { ed25519Checks } from '../group/ownership/signing.ts';
import type { LedgerState, LogLine, Moment } from '../group/ownership/state.ts';
import { PendingState, isDurable } from '../group/ownership/state.ts';

/** Proposals that share one sync; more than any real burst, and a bound on one record. */
const batchProposalsMax = 256;
/** Proposals that wait; beyond it the ledger says that it is too busy instead of growing. */
const waitingProposalsMax = 10_000;

export interface CoreOptions {
  readonly storage: LogStorage;
  readonly logger: Logger;
  readonly now?: () => Moment;
  readonly segmentBytesMax?: number;
  /** Length of leases; default timing.leaseTtlMs. */
  readonly leaseTtlMs?: number;
  /** Called once when the disk failed in a way that leaves unknown what is durable. */
  readonly onBroken?: (error: Error) => void;
}

interface Waiting {
  readonly events: readonly LedgerEvent[];
  readonly proposer: Identity;
  readonly resolve: (verdicts: readonly Verdict[]) => void;
  readonly reject: (error: Error) => void;
}
export type VmListener = (entry: VmEntry | null) => void;

/** Counters for `/metrics`. */
export interface CoreFigures {
  proposals: number;
  refusals: number;
  syncs: number;
  diskFull: number;
  decideMs: number;
  syncMs: number;
}

export const systemMoment = (): Moment => ({ wallMs: Date.now(), steadyMs: performance.now() });

export class LedgerCore {
  readonly figures: CoreFigures = {
    proposals: 0, refusals: 0, syncs: 0, diskFull: 0, decideMs: 0, syncMs: 0,
  };
  private readonly log: DurableLog;
  private readonly options: CoreOptions;
  private readonly now: () => Moment;
  private readonly waiting: Waiting[] = [];
  private readonly listeners = new Map<VmName, Set<VmListener>>();
  /** When each host last proposed anything, on the steady clock. */
  private readonly heardAtMs = new Map<string, number>();
  private readonly openedAtMs: number;
  private turning: Promise<void> | null = null;
  private closed = false;

  private constructor(log: DurableLog, options: CoreOptions) {
    this.log = log;
    this.options = options;
    this.now = options.now ?? systemMoment;
    this.openedAtMs = this.now().steadyMs;
  }

  /** Loads the log; every lease counts as renewed now. Throws `internal` on a damaged log. */
  static async open(options: CoreOptions): Promise<LedgerCore> {
    const { steadyMs } = (options.now ?? systemMoment)();
    const log = await DurableLog.open({
      storage: options.storage, logger: options.logger, leaseFloorMs: steadyMs,
      ...(options.segmentBytesMax === undefined
        ? {} : { segmentBytesMax: options.segmentBytesMax }),
    });
    return new LedgerCore(log, options);
  }

  /** Durable state; what a reader may see. */
  get state(): LedgerState {
    return this.log.state;
  }

  /** See contracts' `Ledger.propose`; the proposer is whoever the connection has proved to be. */
  propose(events: readonly LedgerEvent[], proposer: Identity): Promise<readonly Verdict[]> {
    if (this.closed) return Promise.reject(new CodedError('ownership/unreachable', 'closing'));
    if (this.waiting.length >= waitingProposalsMax) {
      return Promise.reject(new CodedError('ownership/unreachable', 'too many proposals wait'));
    }
    if (proposer.role === 'host') this.heardAtMs.set(proposer.name, this.now().steadyMs);
    const { promise, resolve, reject } = Promise.withResolvers<readonly Verdict[]>();
    this.waiting.push({ events, proposer, resolve, reject });
    this.turning ??= this.turn();
    return promise;
  }

  private async turn(): Promise<void> {
    // Whatever arrives in the same tick shares the first sync.
    await Promise.resolve();
    while (this.waiting.length > 0) {
      await this.decideBatch(this.waiting.splice(0, batchProposalsMax));
      if (this.log.wantsCheckpoint && !this.log.isBroken) await this.log.checkpoint();
    }
    this.turning = null;
  }

  private async decideBatch(batch: readonly Waiting[]): Promise<void> {
    const pending = new PendingState(this.state);
    const lines: LogLine[] = [];
    /** Proposals that need the disk. */
    const writing = new Set<Waiting>();
    const startedMs = performance.now();
    const answers: (readonly Verdict[] | CodedError)[] = batch.map((one) => {
      const lineCount = lines.length;
      try {
        return this.decideOne(one, pending, lines);
      } catch (error) {
        return new CodedError('internal', 'the ledger failed to decide', error);
      } finally {
        if (lines.length > lineCount) writing.add(one);
      }
    });
    const decidedMs = performance.now();
    this.figures.decideMs += decidedMs - startedMs;
    try {
      if (lines.length > 0) {
        await this.log.append(lines);
        this.figures.syncs += 1;
        this.figures.syncMs += performance.now() - decidedMs;
      }
    } catch (error) {
      this.refuseBatch(batch, writing, error as Error);
      return;
    }
    pending.settleIntoBase();
    for (const { change } of lines) {
      if (change.vm !== null) this.tell(change.vm.entry.vm, visibleEntry(change.vm));
    }
    for (const [position, { resolve, reject }] of batch.entries()) {
      const answer = answers[position] as readonly Verdict[] | CodedError;
      if (answer instanceof CodedError) reject(answer);
      else resolve(answer);
    }
  }

  private decideOne(
    { events, proposer }: Waiting, pending: PendingState, lines: LogLine[],
  ): readonly Verdict[] {
    const verdicts: Verdict[] = [];
    for (const event of events) {
      const now = this.now();
      const { verdict, change } = decide(pending, event, {
        proposer, now, checks: ed25519Checks,
        ...(this.options.leaseTtlMs === undefined ? {} : { leaseTtlMs: this.options.leaseTtlMs }),
      });
      this.figures.proposals += 1;
      verdicts.push(verdict);
      if (!verdict.accepted) {
        this.figures.refusals += 1;
        break;
      }
      if (change === null) continue;
      pending.add(change);
      if (!isDurable(change)) continue;
      const { vm, host, ended } = change;
      lines.push({
        version: 1, index: pending.index, atMs: now.wallMs, proposer, event,
        change: { vm, host, ended },
      });
    }
    return verdicts;
  }

  /**
   * Nothing of the batch has happened. Without room only those that need it are refused; the others
   * (renewals, repeats, refusals) are decided again without them.
   */
  private refuseBatch(
    batch: readonly Waiting[], writing: ReadonlySet<Waiting>, error: Error,
  ): void {
    if (error instanceof CodedError && error.code === 'disk/full') {
      this.figures.diskFull += 1;
      this.options.logger.error({ err: error }, 'the ledger refuses proposals: its disk is full');
      this.waiting.unshift(...batch.filter((one) => !writing.has(one)));
      for (const { reject } of writing) reject(error);
      return;
    }
    this.options.logger.fatal({ err: error }, 'the disk of the ledger failed');
    this.closed = true;
    this.options.onBroken?.(error);
    for (const { reject } of [...batch, ...this.waiting.splice(0)]) reject(error);
  }

  readVm(vm: VmName): VmEntry | null {
    this.assertReadable();
    return visibleEntry(this.state.vm(vm));
  }
  listVms(): readonly VmEntry[] {
    this.assertReadable();
    return [...this.state.vms.values()].map(visibleEntry).filter((entry) => entry !== null);
  }
  listHosts(): readonly HostView[] {
    this.assertReadable();
    const { steadyMs } = this.now();
    return [...this.state.hosts.values()].map((entry) => {
      const heardAtMs = this.heardAtMs.get(entry.facts.name) ?? this.openedAtMs;
      return { ...entry, silentForMs: Math.max(0, Math.round(steadyMs - heardAtMs)) };
    });
  }
  /** Null while it is open (also between commit and settle) or was never heard of. */
  migrationEnd(migration: MigrationId): MigrationEnd | null {
    this.assertReadable();
    return this.state.ended(migration)?.end ?? null;
  }

  private assertReadable(): void {
    if (this.log.isBroken) throw new CodedError('ownership/unreachable', 'the disk failed');
  }

  /** Calls back after each durable change of the VM, until stopped; `readVm` is the present. */
  onVmChange(vm: VmName, listener: VmListener): () => void {
    const set = this.listeners.get(vm) ?? new Set();
    this.listeners.set(vm, set);
    set.add(listener);
    return () => {
      set.delete(listener);
      if (set.size === 0 && this.listeners.get(vm) === set) this.listeners.delete(vm);
    };
  }

  private tell(vm: VmName, entry: VmEntry | null): void {
    for (const listener of this.listeners.get(vm) ?? []) listener(entry);
  }

  /** Lets what waits finish, then closes the log. */
  async close(): Promise<void> {
    if (this.closed && this.turning === null) return this.log.close();
    this.closed = true;
    await this.turning;
    await this.log.close();
  }
}
