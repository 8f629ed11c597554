/**
 * The state that the ownership ledger keeps, and how a decided change is applied to it.
 * Decides only retention; what may change is decided by decide.ts, durability by ../ledger-log.
 */
import type {
  HostName, Identity, Incarnation, MigrationId, VmName,
} from '../../../contracts/identity.ts';
import type {
  HostEntry, LedgerEvent, MigrationEnd, VmEntry,
} from '../../../contracts/ownership.ts';

/** Bounds of the ledger's state, each with its reason. */
export const ledgerBounds = {
  /** Names ever used; a tombstone stays, because it keeps the epoch. At 3 KiB each 300 MB. */
  vmCountMax: 100_000,
  hostCountMax: 10_000,
  /** Ended migrations kept for readers (workflows that retry late); about 5 MB. */
  endedMoveCountMax: 20_000,
  /**
   * Aborted moves of one VM under one epoch. They can't be forgotten before the epoch grows, or a
   * late repeat of Prepare would open an ended id again; so their number is bounded instead.
   */
  abortsPerEpochMax: 10_000,
  /** The target may settle by itself this long after its start, if control never does. */
  settleSelfDecisionMs: 30_000,
  /** Longest reason or fence proof that is kept. */
  reasonLengthMax: 1_024,
} as const;

/** A migration: open while `end` is null. `decision` and `end` are set once, for good (P5). */
export interface MoveRecord {
  readonly migration: MigrationId;
  readonly vm: VmName;
  /** Epoch under which it was prepared; a commit makes it one higher. */
  readonly epoch: number;
  readonly source: HostName;
  readonly target: HostName;
  readonly decision: 'commit' | 'abort' | null;
  readonly end: MigrationEnd | null;
  readonly quiescedAtMs: number | null;
  readonly startedAtMs: number | null;
  /** VMM at the target, declared dead before its first instruction; it may not start again. */
  readonly declinedBy: Incarnation | null;
}

/** What made the present epoch; it is how a repeat of that event is recognised. */
export interface EpochOrigin {
  readonly kind: 'create' | 'commit' | 'revert' | 'failover' | 'restart';
  readonly fromEpoch: number;
  readonly incarnation: Incarnation | null;
}

/** A VM as the ledger keeps it: what everyone sees, and what only the rules need. */
export interface VmRecord {
  readonly version: 1;
  readonly entry: VmEntry;
  /** Open or last migration. */
  readonly move: MoveRecord | null;
  readonly origin: EpochOrigin;
  readonly abortsAtEpoch: number;
}

/** What the rules may look at. */
export interface LedgerView {
  /** Log index of the last applied change. */
  readonly index: number;
  readonly vmCount: number;
  readonly hostCount: number;
  vm(name: VmName): VmRecord | undefined;
  host(name: HostName): HostEntry | undefined;
  ended(migration: MigrationId): MoveRecord | undefined;
  /** Steady-clock time of the last renewal of the owner's lease. */
  leaseRenewedAtMs(vm: VmName): number;
}

/** A decided change. Everything but `lease` is durable before anyone sees it. */
export interface Change {
  readonly vm: VmRecord | null;
  readonly host: HostEntry | null;
  readonly ended: MoveRecord | null;
  /** Leases live in memory: a ledger that restarts treats every lease as just renewed. */
  readonly lease: { readonly vm: VmName; readonly renewedAtMs: number } | null;
}

export const isDurable = (change: Change): boolean =>
  change.vm !== null || change.host !== null || change.ended !== null;

/** Wall clock for people and the blackout's patience; steady clock for leases. */
export interface Moment {
  readonly wallMs: number;
  /** Never jumps; a ledger that was suspended sees it stand, which only makes leases longer. */
  readonly steadyMs: number;
}

/** One line of the log: what was proposed, by whom, and what it changed. */
export interface LogLine {
  readonly version: 1;
  readonly index: number;
  readonly atMs: number;
  readonly proposer: Identity;
  readonly event: LedgerEvent;
  readonly change: Omit<Change, 'lease'>;
}

/** State as it is stored in a checkpoint. */
export interface StoredState {
  readonly version: 1;
  readonly index: number;
  readonly vms: readonly VmRecord[];
  readonly hosts: readonly HostEntry[];
  readonly ended: readonly MoveRecord[];
}

/** The ledger's state in memory. `leaseFloorMs` is the process's start on the steady clock. */
export class LedgerState implements LedgerView {
  index = 0;
  readonly vms = new Map<VmName, VmRecord>();
  readonly hosts = new Map<HostName, HostEntry>();
  readonly endedMoves = new Map<MigrationId, MoveRecord>();
  private readonly leases = new Map<VmName, number>();
  private readonly leaseFloorMs: number;

  constructor(leaseFloorMs: number) {
    this.leaseFloorMs = leaseFloorMs;
  }

  get vmCount(): number {
    return this.vms.size;
  }
  get hostCount(): number {
    return this.hosts.size;
  }
  vm(name: VmName): VmRecord | undefined {
    return this.vms.get(name);
  }
  host(name: HostName): HostEntry | undefined {
    return this.hosts.get(name);
  }
  ended(migration: MigrationId): MoveRecord | undefined {
    return this.endedMoves.get(migration);
  }
  leaseRenewedAtMs(vm: VmName): number {
    return this.leases.get(vm) ?? this.leaseFloorMs;
  }

  /** Applies a change that was decided on exactly this state (and is durable, if it has to be). */
  apply(change: Omit<Change, 'lease'> & Partial<Pick<Change, 'lease'>>): void {
    if (change.vm !== null) this.vms.set(change.vm.entry.vm, change.vm);
    if (change.host !== null) this.hosts.set(change.host.facts.name as HostName, change.host);
    if (change.ended !== null) {
      this.endedMoves.set(change.ended.migration, change.ended);
      this.forgetOldMoves();
    }
    if (change.lease) this.leases.set(change.lease.vm, change.lease.renewedAtMs);
    if (change.vm !== null || change.host !== null || change.ended !== null) this.index += 1;
  }

  /** Drops the oldest ends whose epoch is past; those of a present epoch guard against repeats. */
  private forgetOldMoves(): void {
    if (this.endedMoves.size <= ledgerBounds.endedMoveCountMax) return;
    const keep = Math.floor(ledgerBounds.endedMoveCountMax * 0.9);
    for (const [migration, move] of this.endedMoves) {
      if (this.endedMoves.size <= keep) return;
      const record = this.vms.get(move.vm);
      if (record === undefined || record.entry.epoch > move.epoch) {
        this.endedMoves.delete(migration);
      }
    }
  }

  store(): StoredState {
    return {
      version: 1,
      index: this.index,
      vms: [...this.vms.values()],
      hosts: [...this.hosts.values()],
      ended: [...this.endedMoves.values()],
    };
  }

  /** A state from its checkpoint; every lease counts as just renewed at `leaseFloorMs`. */
  static restore(stored: StoredState, leaseFloorMs: number): LedgerState {
    const state = new LedgerState(leaseFloorMs);
    state.index = stored.index;
    for (const record of stored.vms) state.vms.set(record.entry.vm, record);
    for (const host of stored.hosts) state.hosts.set(host.facts.name as HostName, host);
    for (const move of stored.ended) state.endedMoves.set(move.migration, move);
    return state;
  }
}

/** Changes decided on top of a state, not durable yet; dropped as a whole if the disk refuses. */
export class PendingState implements LedgerView {
  index: number;
  private readonly base: LedgerState;
  private readonly changes: Change[] = [];
  private readonly vms = new Map<VmName, VmRecord>();
  private readonly hosts = new Map<HostName, HostEntry>();
  private readonly moves = new Map<MigrationId, MoveRecord>();
  private readonly leases = new Map<VmName, number>();

  constructor(base: LedgerState) {
    this.base = base;
    this.index = base.index;
  }

  get vmCount(): number {
    return this.base.vmCount + this.vms.size;
  }
  get hostCount(): number {
    return this.base.hostCount + this.hosts.size;
  }
  vm(name: VmName): VmRecord | undefined {
    return this.vms.get(name) ?? this.base.vm(name);
  }
  host(name: HostName): HostEntry | undefined {
    return this.hosts.get(name) ?? this.base.host(name);
  }
  ended(migration: MigrationId): MoveRecord | undefined {
    return this.moves.get(migration) ?? this.base.ended(migration);
  }
  leaseRenewedAtMs(vm: VmName): number {
    return this.leases.get(vm) ?? this.base.leaseRenewedAtMs(vm);
  }

  add(change: Change): void {
    this.changes.push(change);
    if (change.vm !== null) this.vms.set(change.vm.entry.vm, change.vm);
    if (change.host !== null) this.hosts.set(change.host.facts.name as HostName, change.host);
    if (change.ended !== null) this.moves.set(change.ended.migration, change.ended);
    if (change.lease !== null) this.leases.set(change.lease.vm, change.lease.renewedAtMs);
    if (isDurable(change)) this.index += 1;
  }

  /** Makes the changes part of the base; only after they are durable. */
  settleIntoBase(): void {
    for (const change of this.changes) this.base.apply(change);
  }
}
