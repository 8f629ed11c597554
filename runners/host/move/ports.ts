/**
 * What the two halves of a move need of the world: the VMM, its disks, the gates, the ledger, the
 * clock. The host runner hands in the real ones, tests hand in fakes; the order of the hand-over
 * in source-move.ts and target-move.ts knows nothing else.
 */
import type { Logger } from 'pino';
import type { ExactnessReport } from '../../../contracts/exactness.ts';
import type { CodedError } from '../../../contracts/failures.ts';
import type { HostName, Incarnation, MigrationId, VmName } from '../../../contracts/identity.ts';
import type { MigrationPolicy } from '../../../contracts/migration.ts';
import type { Ledger, TransferRecord } from '../../../contracts/ownership.ts';
import type { SourceSession } from '../../data-plane/sessions.ts';
import type { UnsignedTransferRecord } from '../../group/ownership/signing.ts';
import type { PeerMessage } from './peer-messages.ts';

/** A moment that QEMU stamped, on this host's wall clock, ms since the epoch. */
export interface Stamped {
  readonly eventMs: number;
}

/** The VMM that runs the VM at the source. */
export interface SourceVmm {
  /** Stops all vCPUs and drains disk I/O; resolves when the command has returned. */
  stop(): Promise<Stamped>;
  /** QEMU's stream without guest RAM into a unix socket; resolves when QEMU calls it completed. */
  sendDeviceState(socketPath: string): Promise<void>;
  /** cont, also after the device state has left. Resolves with the RESUME event. */
  resume(): Promise<Stamped>;
  /** Memory is copied from now on, beside the running guest. */
  copying(): void;
  /** Nothing waits for this VMM or its move any more, wherever the VM runs. */
  moveOver(): void;
  /** Writes the epoch under which the image runs from now on; durable when it resolves. */
  stamp(epoch: number): Promise<void>;
  readonly incarnation: Incarnation;
  /** Resolves with vmm/gone when its process ended, vm/stopped-itself when its guest shut down. */
  readonly ended: Promise<CodedError>;
}

/** Progress of one move's disks, summed over all mirrors. */
export interface MirrorProgress {
  readonly bytesTotal: number;
  readonly bytesDone: number;
  /** The total as the jobs first told it: it grows with what the guest writes. */
  readonly bytesAtStart: number;
  /** What the images hold, holes left out; null where the VMM does not say. */
  readonly bytesAllocated: number | null;
  /** Cap of all jobs together as it is now; 0 = none. */
  readonly bytesPerSecondMax: number;
  readonly mode: 'none' | 'background' | 'write-blocking';
  /** Why guest writes are held back, for users; '' when they are not. */
  readonly said: string;
}

/** The mirrors of one move at the source. */
export interface SourceDisks {
  /** Removes what a runner that died has left of its mirrors; before `start`. */
  clear(): Promise<void>;
  /** Starts a mirror a disk into its socket; repeats join. */
  start(sockets: readonly string[]): Promise<void>;
  /** Every mirror is in sync and follows the guest's writes. */
  synchronised(): Promise<void>;
  setBandwidth(bytesPerSecond: number): Promise<void>;
  /** Just before STOP: guest writes go to the target at once, so that little is left to drain. */
  tighten(): Promise<void>;
  /** After STOP: nothing dirty, nothing in flight. The jobs stay, so that an abort loses nothing. */
  drained(): Promise<void>;
  /** Cuts the way to a target that does not answer: the guest's writes must not hang on it. */
  cut(): Promise<void>;
  /** Gives mirrors up; the VM goes on with its own disks. Idempotent. */
  cancel(): Promise<void>;
  progress(): MirrorProgress;
}

/** The incoming VMM at the target. */
export interface TargetVmm {
  /** A copy of its VM comes in from now on, until `resume` or `kill`. */
  copying(): void;
  /** Device state is loaded, the disks' images are this VMM's. */
  loaded(): Promise<void>;
  /** The writable exports for the mirrors are gone; called after the last flush. */
  closeExports(): Promise<void>;
  resume(): Promise<Stamped>;
  /** Stops the running guest; nothing writes its memory when it resolves. */
  pause(): Promise<void>;
  /** After `pause`. */
  goOn(): Promise<void>;
  /** Tells the segment where the VM is now. */
  announce(): Promise<void>;
  stamp(epoch: number): Promise<void>;
  /** Kills and reaps it; true when it is certain that no RESUME was seen. */
  kill(): Promise<boolean>;
  readonly incarnation: Incarnation;
  readonly ended: Promise<CodedError>;
}

/** What writes disks under an epoch and can be told to end: a session of the data plane. */
export interface FencedDisks {
  /** Resolves when nothing of a lower epoch is on its way any more. */
  raiseDisks(epoch: number): Promise<void>;
}

/** The epoch gate and the NIC gate of one VM on this host. */
export interface VmGates {
  /**
   * Puts the streams of a move under the gate until `leave`: a raise above `epoch` ends them first.
   * Failure: ownership/refused when the gate is above it already.
   */
  enter(epoch: number, disks: FencedDisks): { leave(): void };
  /** Durable, then in force; resolves when no write of a lower epoch is in flight any more. */
  raise(epoch: number): Promise<void>;
  /**
   * A VM with `failover: automatic` is bound to a lease of this epoch, counted from now; others are
   * left alone. Has to resolve before the first instruction. Waits out a silent ledger. Failures:
   * ownership/refused, vmm/gone (no guard).
   */
  bindLease(epoch: number): Promise<void>;
  openNics(): Promise<void>;
  closeNics(): Promise<void>;
}

/** The conversation of the two runners about one move; PeerLink is the real one. */
export interface PeerConversation {
  /** Resolves once, with the reason, when nothing more will come or go. */
  readonly gone: Promise<Error>;
  send(message: PeerMessage): void;
  /** Hands over what arrived so far and everything later. One listener at a time. */
  listen(listener: (message: PeerMessage) => void): void;
  /** Peer's clock minus ours, ms, with its error. */
  compareClocks(): Promise<{ readonly offsetMs: number; readonly errorMs: number }>;
  close(): void;
}

/** Where a source's lanes lead, so that a restarted runner can serve a frozen image. */
export interface MoveLanes {
  readonly address: string;
  readonly port: number;
  readonly count: number;
  readonly bandwidthBytesPerSecond: number;
}

/** Kept beside the VM so that a restarted runner knows how far this host's half was. */
export interface MoveNote {
  readonly version: 1;
  readonly migration: MigrationId;
  readonly side: 'source' | 'target';
  readonly epoch: number;
  readonly peer: HostName;
  /**
   * `open`: a target is prepared; should the ledger have committed this very migration, everything
   * had arrived, for that is what Ready attests. A source that copies has an open one, too: the
   * next runner sees by it that it is not the first. Its other stages follow the hand-over.
   * `damaged`: the VM started here with wrong pages and stands until an operator decides.
   */
  readonly stage: 'open' | 'quiescing' | 'handed-over' | 'damaged';
  /** What the check found, of a damaged one. */
  readonly exactness?: ExactnessReport | undefined;
  /** In a source's notes. */
  readonly lanes?: MoveLanes | undefined;
}

/** Shared by both halves. */
export interface MoveWorld {
  readonly host: HostName;
  readonly ledger: Ledger;
  sign(record: UnsignedTransferRecord): TransferRecord;
  signDeclined(statement: {
    readonly vm: VmName;
    readonly migration: MigrationId;
    readonly epoch: number;
    readonly incarnation: Incarnation;
  }): string;
  /** Durable when it resolves. */
  note(vm: VmName, note: MoveNote | null): Promise<void>;
  /** Wall clock with fractions, ms. */
  nowMs(): number;
  sleep(ms: number): Promise<void>;
}

/** Everything that the source's half of one move is made of. */
export interface SourceMoveOptions {
  readonly migration: MigrationId;
  readonly vm: VmName;
  readonly target: HostName;
  readonly epoch: number;
  readonly policy: MigrationPolicy;
  readonly world: MoveWorld;
  readonly vmm: SourceVmm;
  readonly disks: SourceDisks;
  readonly gates: VmGates;
  readonly session: SourceSession;
  readonly openLink: () => Promise<PeerConversation>;
  readonly lanes: MoveLanes;
  /** A session before this one, perhaps of a runner that died, has begun the same move. */
  readonly isSuccessor: boolean;
  /** Sockets that the session listens on: device state, and one a disk. */
  readonly deviceStateSocket: string;
  readonly diskSockets: readonly string[];
  readonly log: Logger;
}
