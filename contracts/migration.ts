/** The contract of the workflow family `migrateVm`, in five blocks. */
import { defaultExactness } from './exactness.ts';
import type { DamageChoice, ExactnessMode, ExactnessReport } from './exactness.ts';
import type { FailureReport } from './failures.ts';
import type { HostName, Incarnation, MigrationId, RequestId, VmName } from './identity.ts';
import type { TransferRecord } from './ownership.ts';
import type { RunningVm, VmRunState } from './runner.ts';

// ---- 1. names -------------------------------------------------------------------------------
// Workflow id: identity.migrationId(vm, request); inverse: identity.parseMigrationId.
export const migrateVmType = 'migrateVm';

// ---- 2. input and outcome -------------------------------------------------------------------
/** Consent and budgets of one move; every default is the safe choice. */
export interface MigrationPolicy {
  /** Longest blackout to aim at, ms. */
  readonly downtimeBudgetMs: number;
  /** Cap for all lanes together; 0 = none. */
  readonly bandwidthBytesPerSecond: number;
  /** Consent to rule 6: memory may be lost if a host dies while pages are still missing. */
  readonly postCopy: 'never' | 'when-needed';
  /** The move is given up (source goes on) when it is not in its blackout by then, ms. */
  readonly deadlineMs: number;
  readonly laneCount: number;
  /** Absent in what older clients ask: the default. */
  readonly exactness?: ExactnessMode;
}
export const defaultPolicy: MigrationPolicy = {
  downtimeBudgetMs: 100,
  bandwidthBytesPerSecond: 0,
  postCopy: 'never',
  deadlineMs: 6 * 3600_000,
  laneCount: 2,
  exactness: defaultExactness,
};

export interface MigrateVmInput {
  readonly version: 1;
  readonly vm: VmName;
  readonly target: HostName;
  readonly request: RequestId;
  readonly policy: MigrationPolicy;
  /** Set by the workflow where it goes on as a new run; `policy` is then what is left of it. */
  readonly carried?: { readonly attempts: number; readonly percent: number };
}

/**
 * Named parts of the blackout, ms, in the order in which they follow each other; they sum to
 * `downtimeMs` = source STOP event to target RESUME event. What runs beside an earlier part counts
 * only with what it adds.
 */
export interface DowntimeParts {
  /** STOP event until disk I/O in flight is drained and flushed at the source. */
  readonly stopMs: number;
  /** Last pass over dirty pages, until every byte is in the target's memory and digested. */
  readonly lastPassMs: number;
  /** Disk mirror drained and device state loaded, after the last pass was in. */
  readonly deviceStateMs: number;
  /** Target's disk flush, what of it the parts above did not hide. */
  readonly flushMs: number;
  /** Quiesced, Ready and Commit in the ledger. */
  readonly commitMs: number;
  /** The target's epoch gate made durable. */
  readonly gateMs: number;
  /** Started in the ledger. */
  readonly startedMs: number;
  /** cont until the RESUME event. */
  readonly resumeMs: number;
}

/** Named parts of a transfer, ms, in the order in which they follow each other. */
export interface TotalParts {
  /** The session's start until peer link and lanes are up: connections, TLS, clocks compared. */
  readonly connectMs: number;
  /** Until memory is begun: disks brought in sync, and the step in between. */
  readonly diskMs: number;
  /** Round 0 until the source's STOP event. */
  readonly memoryMs: number;
  readonly downtimeMs: number;
  /** The target's RESUME event until the source knows of it and has closed its gate. */
  readonly closingMs: number;
}

/** Figures of a finished or running transfer. Bytes are counted at the socket. */
export interface TransferFigures {
  /** The source session's start until the hand-over is closed; pages of a post-copy come later. */
  readonly totalMs: number;
  /** They sum to `totalMs`; null where the session could not be asked. */
  readonly totalParts: TotalParts | null;
  /** Post-copy: pages were still missing at the target when it started. */
  readonly mode: 'pre-copy' | 'post-copy';
  readonly downtimeMs: number;
  readonly downtimeParts: DowntimeParts;
  readonly rounds: number;
  readonly bytesOnWire: number;
  readonly memoryBytesSent: number;
  readonly diskBytesSent: number;
  readonly postCopyFaults: number;
  readonly convergence: string;
}

/** Counters of the source once every page is at the target: post-copy goes on after the start. */
export type LateFigures = Pick<TransferFigures, 'bytesOnWire' | 'memoryBytesSent'>;

interface OutcomeCommon {
  readonly version: 1;
  readonly migration: MigrationId;
  readonly vm: VmName;
  /** Null when the move failed before it was known (no such VM). */
  readonly source: HostName | null;
  readonly target: HostName;
}
export interface MigrationCompleted extends OutcomeCommon {
  readonly kind: 'completed';
  readonly source: HostName;
  readonly figures: TransferFigures;
  readonly digest: string;
  readonly epochBefore: number;
  readonly epochAfter: number;
  /** Absent in what older workers answered. */
  readonly exactness?: ExactnessReport;
  /** What went wrong after the VM was safe at the target (e.g. the source could not be cleaned). */
  readonly warnings: readonly FailureReport[];
}
/**
 * The target started with a wrong page and its guest wrote it: the VM stands at the target, both
 * images are kept, and an operator says what becomes of it (`novacron vm resolve`).
 */
export interface MigrationDamaged extends OutcomeCommon {
  readonly kind: 'damaged';
  readonly source: HostName;
  readonly figures: TransferFigures;
  readonly exactness: ExactnessReport;
}
export interface MigrationCancelled extends OutcomeCommon {
  readonly kind: 'cancelled';
  readonly by: string;
  readonly compensationFailures: readonly FailureReport[];
}
export interface MigrationFailed extends OutcomeCommon {
  readonly kind: 'failed';
  readonly failure: FailureReport;
  /** Where the VM runs now, null when it runs nowhere (the guest stopped itself). */
  readonly runsOn: HostName | null;
  readonly compensationFailures: readonly FailureReport[];
}
export type MigrationOutcome =
  | MigrationCompleted | MigrationCancelled | MigrationFailed | MigrationDamaged;

// ---- 3. status ------------------------------------------------------------------------------
export type MigrationPhase =
  | 'preflight' | 'reserve' | 'prepare-target' | 'copy-disk' | 'copy-memory' | 'switchover'
  | 'post-copy' | 'verify' | 'settle' | 'release' | 'compensating' | 'done';

/**
 * Where a move leads if link and guest go on as they are. `not-converging`: the guest changes
 * memory faster than it is sent, and the policy does not allow what would end it; `past-deadline`: it will
 * not be over in time. Both will be given up.
 */
export type MoveOutlook =
  | 'unknown' | 'ends' | 'ends-by-post-copy' | 'not-converging' | 'past-deadline';

/** What a session in the source's runner reports; also each heartbeat's detail. */
export interface SessionProgress {
  readonly version: 1;
  readonly phase: 'connecting' | 'disk' | 'memory' | 'switchover' | 'post-copy' | 'ended';
  readonly paused: boolean;
  readonly round: number;
  /** Bytes that had to be sent so far, counting pages dirtied again, and how many of them were. */
  readonly bytesPlanned: number;
  readonly bytesDone: number;
  readonly bytesOnWire: number;
  readonly diskBytesTotal: number;
  readonly diskBytesDone: number;
  readonly dirtyBytesPerSecond: number;
  readonly sendBytesPerSecond: number;
  /** Until the move's outcome; null while there is no honest estimate. */
  readonly etaMs: number | null;
  /** Absent in what older runners report. */
  readonly outlook?: MoveOutlook;
  /** Of the switchover that is foreseen; the least that would be needed where none is. */
  readonly estimatedDowntimeMs: number | null;
  readonly convergence: string;
  readonly mirrorMode: 'none' | 'background' | 'write-blocking';
}
/** Sizes that the move has to carry; the disk's part of the percent is its part of the bytes. */
export interface MoveSize {
  readonly memoryBytes: number;
  readonly diskBytes: number;
}
export interface MigrationStatus {
  readonly version: 1;
  readonly phase: MigrationPhase;
  readonly vm: VmName;
  readonly source: HostName | null;
  readonly target: HostName;
  readonly engine: 'direct';
  /** 0 to 100, never falls. */
  readonly percent: number;
  readonly pointOfNoReturnPassed: boolean;
  readonly policy: MigrationPolicy;
  /** Null until the source was asked. */
  readonly size: MoveSize | null;
  readonly progress: SessionProgress | null;
  /** Who is waited for and since when, for `novacron why`. */
  readonly waitingFor: { readonly what: string; readonly sinceMs: number } | null;
  readonly outcome: MigrationOutcome | null;
}
/** Search attributes, all keyword. */
export const migrationSearchAttributes = {
  phase: 'NovacronPhase', vm: 'NovacronVm',
  source: 'NovacronSource', target: 'NovacronTarget',
  engine: 'NovacronEngine',
  /** running, then the kind of the outcome. */
  outcome: 'NovacronOutcome',
} as const;

// ---- 4. messages ----------------------------------------------------------------------------
export const migrationMessages = {
  /** query → MigrationStatus */
  status: 'status',
  /** updates: the caller learns whether it took effect */
  pause: 'pause',
  resume: 'resume',
  cancel: 'cancel',
  setBandwidth: 'set-bandwidth',
  setDowntimeBudget: 'set-downtime-budget',
  postCopyNow: 'post-copy-now',
} as const;

/** What an update asks of the session in the source's runner. */
export type SessionCommand =
  | { readonly kind: 'pause' }
  | { readonly kind: 'resume' }
  | { readonly kind: 'cancel'; readonly by: string }
  | { readonly kind: 'set-bandwidth'; readonly bandwidthBytesPerSecond: number }
  | { readonly kind: 'set-downtime-budget'; readonly downtimeBudgetMs: number }
  | { readonly kind: 'post-copy-now' };

// ---- 5. activities --------------------------------------------------------------------------
/** What every step of a move knows. Steps are idempotent by `migration`. */
export interface StepInput {
  readonly version: 1;
  readonly migration: MigrationId;
  readonly vm: VmName;
  readonly source: HostName;
  readonly target: HostName;
  readonly epoch: number;
}
/**
 * Where the target's runner listens for this move; the secret is exchanged peer to peer, not here.
 */
export interface TargetEndpoint {
  readonly peerAddress: string;
  readonly peerPort: number;
  readonly laneAddress: string;
  readonly lanePort: number;
  /** Names what was prepared: another one is for another attempt, with a session of its own. */
  readonly session?: string;
}
/** How the session ended. `handed-over`: Started is in the ledger and the target runs. */
export type SessionOutcome =
  | {
      readonly kind: 'handed-over';
      readonly figures: TransferFigures;
      readonly record: TransferRecord;
      readonly targetIncarnation: Incarnation;
    }
  | { readonly kind: 'cancelled'; readonly by: string }
  | { readonly kind: 'failed'; readonly failure: FailureReport; readonly resumed: boolean };

/** A migration that the ledger holds open, as the control worker sees it. */
export interface OpenMigration {
  readonly migration: MigrationId;
  readonly vm: VmName;
  readonly source: HostName;
  readonly target: HostName;
  /** Epoch of the entry: the source's while preparing, the target's once committed. */
  readonly epoch: number;
  /** Committed, and the target has recorded its start: only forward. */
  readonly started: boolean;
  /** A workflow of that id is running and will end it. */
  readonly driven: boolean;
}

/** What a move finds before its first step, also when it is begun again after a reset. */
export interface VmWhereabouts {
  /** Who sends; the owner before the Commit where this migration is committed. */
  readonly source: HostName;
  /** Epoch before the Commit of this migration. */
  readonly epoch: number;
  readonly desired: 'running' | 'stopped';
  /** What the ledger already knows about this very migration. */
  readonly own: 'none' | 'preparing' | 'unsettled' | 'committed' | 'aborted' | 'reverted';
  /** Open migration of that VM under another id, null when none. */
  readonly other: OpenMigration | null;
}

/** Steps on the control worker's queue: nothing here touches a host, only the ledger. */
export interface ControlActivities {
  /** Reads who owns the VM. Failures: vm/unknown, host/unknown, ownership/unreachable. */
  locateVm(input: {
    readonly vm: VmName;
    readonly target: HostName;
    readonly migration: MigrationId;
  }): Promise<VmWhereabouts>;
  /** The open migration of a VM, null when there is none. Failure: ownership/unreachable. */
  readOpenMigration(input: { readonly vm: VmName }): Promise<OpenMigration | null>;
  /** Every open migration that the ledger knows, for the sweep. */
  listOpenMigrations(): Promise<readonly OpenMigration[]>;
  /**
   * Ledger event Prepare. Idempotent by migration.
   * Failures: migration/open, migration/same-host, host/cordoned, host/unknown, ownership/refused.
   */
  reserve(input: StepInput & { readonly policy: MigrationPolicy }): Promise<void>;
  /** Ledger event Abort; answers what the ledger decided: too late is not an error. */
  abortMigration(input: StepInput & { readonly reason: string }): Promise<{
    readonly end: 'committed' | 'aborted' | 'reverted' | 'none';
  }>;
  /** Equal Quiesced and Ready, Started recorded: answers the digest and the epochs. */
  verifyMigration(input: StepInput): Promise<{
    readonly digest: string;
    readonly epochAfter: number;
    /** Settled already; the records were checked before. */
    readonly settled: boolean;
    readonly since?: SinceStart;
  }>;
  /**
   * Ledger event Settle. Failure: ownership/refused while pages are missing. Nothing is what older
   * workers answered.
   */
  settleMigration(input: StepInput): Promise<{ readonly since?: SinceStart } | undefined>;
}

/**
 * What became of the VM after its start at the target was recorded, where that is not "it runs":
 * `vm/memory-lost` its VMM died and it was booted cold there, `vm/stopped-itself` its guest shut it
 * down, `migration/taken-back` the start never came to an instruction and is undone.
 */
export type SinceStart = FailureReport;

/** A VM that runs after its damage was resolved. */
export interface RunningAgain {
  readonly runState: VmRunState;
  readonly incarnation: Incarnation | null;
  readonly epoch: number;
}

/** Steps on a host's own queue. */
export interface HostActivities {
  /** Source: what runs, and what keeps it from being moved exactly. */
  inspectVm(input: StepInput): Promise<RunningVm>;
  /** Target: refuses with a preflight/* failure before anything moves. */
  checkTarget(input: StepInput & { readonly running: RunningVm }): Promise<void>;
  /** Target: VMM incoming and paused, disks made, listeners armed. Idempotent by migration. */
  prepareTarget(input: StepInput & {
    readonly running: RunningVm;
    readonly policy: MigrationPolicy;
  }): Promise<TargetEndpoint>;
  /**
   * Source: disks in sync, the mirror stays on. Heartbeats SessionProgress. Joins a running one.
   */
  copyDisk(input: StepInput & {
    readonly endpoint: TargetEndpoint;
    readonly policy: MigrationPolicy;
  }): Promise<void>;
  /**
   * Source: memory and switchover in one; a new attempt joins the running session. Heartbeats
   * SessionProgress. Ends with the session's outcome; never throws for a decided one.
   */
  copyMemoryAndSwitchOver(input: StepInput & {
    readonly endpoint: TargetEndpoint;
    readonly policy: MigrationPolicy;
  }): Promise<SessionOutcome>;
  /** Source: hands a command to the session. Failure: migration/past-return, migration/not-here. */
  commandSession(input: StepInput & { readonly command: SessionCommand }): Promise<void>;
  /** Source: short look, for queries while no heartbeat arrives. */
  peekSession(input: StepInput): Promise<SessionProgress | null>;
  /**
   * Target, after Started: every page present, guest running, images compared; answers the digest
   * of its Ready record. Heartbeats while pages are missing. Damaged memory is an answer.
   */
  verifyTarget(input: StepInput): Promise<{
    readonly digest: string;
    /** Absent in what older runners answer. */
    readonly exactness?: ExactnessReport;
    readonly since?: SinceStart;
  }>;
  /**
   * Target: a VM that stands damaged goes on, or boots cold under a new epoch, which ends the move.
   * Idempotent; one that is not damaged (any more) is left alone. Failure: ownership/refused.
   */
  resolveDamage(input: StepInput & { readonly choice: DamageChoice }): Promise<RunningAgain>;
  /** Source, only after the ledger says Owned by another: image, disk, tap, directory go. */
  releaseSource(input: StepInput): Promise<LateFigures | null>;
  /** Source, compensation: session ends, VM resumes if the ledger says aborted. */
  abortSource(input: StepInput): Promise<void>;
  /** Target, compensation: everything prepared goes, if the ledger does not own it. */
  discardTarget(input: StepInput): Promise<void>;
}
