/**
 * The data plane as the host runner sees it: one listener a runner, one session a migration and
 * side. This file fixes names, units and failures; memory-engine.ts makes them from the addon.
 * Page data never enters JavaScript; progress is polled.
 */
import type { ExactnessMode, ImageComparison } from '../../contracts/exactness.ts';
import type { MoveOutlook } from '../../contracts/migration.ts';
import type { Bytes, BytesPerSecond, Millis, Pages } from '../../contracts/units.ts';

/** Certificate files of this host and what it trusts, PEM; read when a listener or session opens. */
export interface LaneTls {
  readonly certPath: string;
  readonly keyPath: string;
  readonly caPath: string;
  /** Serial numbers of revoked certificates, hex as openssl prints them. */
  readonly revokedSerials: readonly string[];
}

/** The final pass, as Quiesced and Ready carry it. Digests are lower-case hex. */
export interface MemoryRecord {
  /** Multiset digest of every page the target holds, 32 hex digits. */
  readonly digest: string;
  /** blake3 over the numbers of missing pages, 64 hex digits; of nothing when none is missing. */
  readonly missingDigest: string;
  readonly missingPageCount: Pages;
  /** Writes of each disk's mirror that passed this side, in the order of `disks`. */
  readonly ioSequence: readonly number[];
}

/** What the source knows beyond the record; the parts lie inside the blackout. */
export interface FinishedMemory extends MemoryRecord {
  readonly lastPassPages: Pages;
  readonly scanMs: Millis;
  readonly sendMs: Millis;
  /** Walk over the file's holes, beside the sending. */
  readonly holesMs: Millis;
}

/** What both images' comparisons came to. */
export interface CheckedMemory {
  /** The source's frozen image against what it sent. */
  readonly source: ImageComparison;
  /** The target's memory file against what it received. */
  readonly target: ImageComparison;
  /** Pages that the guest had written before they were compared. */
  readonly writtenPageCount: Pages;
  /** Wrong at the target, whoever found them. */
  readonly wrongPageCount: Pages;
}

/** A fault that a lab plants at one side, to show that it is found; see native/session. */
export interface PlantedFault {
  readonly fault: 'read' | 'skipped' | 'received' | 'decoded' | 'stored';
  readonly page: number | null;
  /** For `skipped`: 16 bytes in hex that mark every page that is skipped. */
  readonly mark: string | null;
}

/** How a move goes on; `reason` is one sentence for people and for the summary. */
export interface ConvergenceDecision {
  readonly decision: 'switch-over' | 'post-copy' | 'give-up';
  /** Why: met-aim, flat-within-budget, flat-above-budget, requested, deadline, not-converging. */
  readonly cause: string;
  readonly reason: string;
}

/** One look at a source session; free of locks that the transfer needs. */
export interface SourceSnapshot {
  readonly state:
    | 'open' | 'connected' | 'pre-copy' | 'converged' | 'finishing' | 'finished' | 'post-copy'
    | 'ended' | 'aborted' | 'failed';
  readonly paused: boolean;
  readonly round: number;
  readonly bytesPlanned: Bytes;
  readonly bytesDone: Bytes;
  /** Bytes at the sockets of lanes and tunnels, both directions, TLS included. */
  readonly bytesOnWire: Bytes;
  /** Bytes that had to be sent a second time because a lane broke. */
  readonly bytesResent: Bytes;
  readonly pagesSent: Pages;
  readonly zeroPages: Pages;
  readonly dirtyBytesPerSecond: BytesPerSecond;
  readonly sendBytesPerSecond: BytesPerSecond;
  /** 0 to 100, never falls. */
  readonly percent: number;
  /** Null while there is no honest estimate. */
  readonly etaMs: Millis | null;
  /** Where it leads if link and guest go on as they are. */
  readonly outlook: MoveOutlook;
  /**
   * What the link has still to carry for memory as it is now, pages of zeros left out; before the
   * first round what a look at the memory file found.
   */
  readonly bytesLeft: Bytes;
  readonly estimatedDowntimeMs: Millis | null;
  /** Cause of the latest decision, see ConvergenceDecision.cause. */
  readonly convergence: string;
  readonly lanesConnected: number;
  readonly laneReconnects: number;
  readonly deviceStateBytes: Bytes;
  readonly diskBytes: Bytes;
  /** Mirror writes of each disk so far; read again once the mirrors are drained and detached. */
  readonly ioSequence: readonly number[];
  readonly missingPages: Pages;
  readonly postCopyFaults: number;
  /** Sums over what each disk's answered mirror writes were; equal once the mirrors are drained. */
  readonly diskDigests: readonly string[];
  /** Of the image check so far. */
  readonly pagesCompared: Pages;
  /** Code and detail of what ended it, null while nothing did. */
  readonly failure: { readonly code: string; readonly detail: string } | null;
}

/** One look at a target session. */
export interface TargetSnapshot {
  readonly state: 'waiting' | 'receiving' | 'memory-in' | 'post-copy' | 'whole' | 'closed' | 'failed';
  readonly lanesConnected: number;
  readonly pagesReceived: Pages;
  readonly bytesOnWire: Bytes;
  readonly deviceStateBytes: Bytes;
  readonly ioSequence: readonly number[];
  readonly missingPages: Pages;
  readonly postCopyFaults: number;
  readonly diskDigests: readonly string[];
  readonly pagesCompared: Pages;
  readonly failure: { readonly code: string; readonly detail: string } | null;
}

/** What the target knows before anything of a move arrives. */
export interface TargetOptions {
  readonly migration: string;
  readonly epoch: number;
  /** The only identity whose lanes are taken, e.g. novacron://host/h1. */
  readonly sourceIdentity: string;
  /** The incoming VMM's memory file; emptied when the session opens, unless it is adopted. */
  readonly memoryPath: string;
  readonly memoryBytes: Bytes;
  readonly vmmPid: number;
  /** Unix socket of the VMM's migrate-incoming; may appear up to 10 s after the lanes. */
  readonly deviceStateSocket: string;
  /** Unix sockets of the VMM's NBD server, one a disk, with the export the mirror writes. */
  readonly disks: readonly { readonly nbdSocket: string; readonly exportName: string }[];
  /** Faults are registered on the VMM before device load, so that pages may be missing. */
  readonly postCopyAllowed: boolean;
  readonly balloon: boolean;
  /** What a runner before this one has received into the same memory and disks is kept. */
  readonly adopted: boolean;
  /** Off: the guest's writes are not tracked after its start. */
  readonly exactness: ExactnessMode;
  /** Null but in a lab. */
  readonly planted: PlantedFault | null;
}

/** What the source needs for one try; a second try is a second session. */
export interface SourceOptions {
  readonly migration: string;
  readonly epoch: number;
  readonly target: {
    readonly address: string;
    readonly port: number;
    readonly identity: string;
  };
  /** 1 to limits.laneCountMax. */
  readonly laneCount: number;
  readonly tls: LaneTls;
  readonly memoryPath: string;
  readonly memoryBytes: Bytes;
  readonly vmmPid: number;
  /** Unix socket that this session makes; QEMU's `migrate unix:` connects to it. */
  readonly deviceStateSocket: string;
  /** Unix sockets that this session makes, one a disk; the mirror job's NBD client connects. */
  readonly disks: readonly { readonly socket: string }[];
  /** Owner of the sockets, null to leave them to this process: QEMU runs as a uid of its own. */
  readonly socketUid: number | null;
  /** Cap for all lanes together; 0 = none. */
  readonly bandwidthBytesPerSecond: BytesPerSecond;
  readonly downtimeBudgetMs: Millis;
  /** Consent to post-copy. */
  readonly postCopy: boolean;
  /** Whether pages may become holes without being written; only then are holes looked for. */
  readonly balloon: boolean;
  /** From startPreCopy; the move is given up (or goes to post-copy with consent) then. */
  readonly deadlineMs: Millis;
  readonly exactness: ExactnessMode;
  /** Null but in a lab. */
  readonly planted: PlantedFault | null;
}

/** What the ledger holds of a last pass whose missing pages are still to be served. */
export type FrozenRecord = Pick<MemoryRecord, 'digest' | 'missingDigest' | 'missingPageCount'>;

/**
 * The source's side of one try. Order: open, connect, startPreCopy, waitConverged, (VM stopped by
 * the caller) finishMemory, then close after Settle, or abort. Any method of a closed session
 * throws internal; methods that return promises reject with link/lost, link/refused,
 * engine/tracking, engine/failed, migration/cancelled (after abort).
 */
export interface SourceSession {
  /** All lanes, the device-state tunnel and the disk sockets are up. Idempotent. */
  connect(): Promise<void>;
  /** Arms dirty tracking and starts round 0. Failure: engine/tracking. */
  startPreCopy(): void;
  /** Resolves once the rounds may end; rounds go on in the background until finishMemory. */
  waitConverged(): Promise<ConvergenceDecision>;
  /**
   * The last pass; the VM must be stopped. Resolves when every byte is handed to the sockets, so
   * that the record can be written while the target still applies it.
   */
  finishMemory(options: { readonly mode: 'pre-copy' | 'post-copy' }): Promise<FinishedMemory>;
  /** Pushes the missing pages until the target is whole; faults are served since finishMemory. */
  servePostCopy(): Promise<{ readonly digest: string }>;
  /**
   * Once the target has every page: compares the frozen image with what was sent, unless that was
   * done in the blackout, and tells the target what is wrong. Never ends with `exactness: off`.
   */
  checkImage(): Promise<ImageComparison>;
  setBandwidth(bandwidthBytesPerSecond: BytesPerSecond): void;
  setDowntimeBudget(downtimeBudgetMs: Millis): void;
  pause(): void;
  resume(): void;
  /**
   * Cuts the disks' streams off if `epoch` is above theirs: the VM goes on here, what they still
   * carry is nobody's. Waits for no answer of the target.
   */
  raiseDisks(epoch: number): Promise<void>;
  /** Asks for post-copy as soon as round 0 has ended; refused without consent (input/invalid). */
  postCopyNow(): void;
  snapshot(): SourceSnapshot;
  /** Ends the try in at most 1 s, link stalled or not; tracking is off when it resolves. */
  abort(): Promise<void>;
  /** Lets go of everything. Idempotent, also after abort; never touches the VM's memory. */
  close(): Promise<void>;
}

/** The target's side of one try, made by LaneListener.expect. */
export interface TargetSession {
  /** The source's final marker and all before it is applied. Rejects: link/lost, migration/digest. */
  waitMemoryIn(): Promise<MemoryRecord>;
  /** Flushes every disk behind the gate. Failure: disk/mirror. */
  flushDisks(): Promise<void>;
  /**
   * Puts an epoch that is durable already in force: resolves when no write of a lower one can reach
   * a disk any more. The VMM's exports have to be gone. Failures: ownership/refused, vmm/timeout.
   */
  raiseDisks(epoch: number): Promise<void>;
  /** Post-copy: every page is present and faults are off. Resolves at once when none is missing. */
  waitWhole(): Promise<{ readonly digest: string }>;
  /** Once the guest runs with every page: compares the memory file with what was received. */
  beginCheck(): void;
  /** Both comparisons. Never ends with `exactness: off`, or while the source is away. */
  waitChecked(): Promise<CheckedMemory>;
  /** Puts wrong pages right that the guest has not written since its start. The VM must stand. */
  repair(): Promise<{ readonly repairedPageCount: Pages; readonly writtenPageCount: Pages }>;
  /** The guest's writes are no longer tracked: has to come before its next move. Idempotent. */
  endCheck(): Promise<void>;
  snapshot(): TargetSnapshot;
  close(): Promise<void>;
}

/** One a runner: TLS lanes of all incoming moves arrive here; garbage on the port is dropped. */
export interface LaneListener {
  readonly port: number;
  /** Registers a move; lanes of unknown moves are refused. Failure: input/invalid when it exists. */
  expect(options: TargetOptions): TargetSession;
  /**
   * Takes over the post-copy that a runner before this one has left: pages that arrived are known
   * from the journal beside the memory file, the rest comes from the source. What keeps it from
   * going on rejects waitMemoryIn and waitWhole (engine/failed, engine/tracking).
   */
  resume(options: TargetOptions): TargetSession;
  /** Stops accepting and closes its sessions. Idempotent. */
  close(): Promise<void>;
}

/** The engine itself; a fake of it makes the hand-over testable without QEMU. */
export interface MemoryEngine {
  /** Failure: input/invalid for unusable certificates or an address in use. */
  openListener(options: {
    readonly address: string;
    /** 0 lets the kernel choose. */
    readonly port: number;
    readonly tls: LaneTls;
  }): LaneListener;
  /** Does no network I/O yet. Failure: input/invalid. */
  openSource(options: SourceOptions): SourceSession;
  /**
   * Serves a frozen image whose runner died after the hand-over: connect and servePostCopy are all
   * that is left to call. The target says what was missing, the record vouches for it.
   */
  resumeSource(options: SourceOptions, record: FrozenRecord): SourceSession;
}
