/** The contract of the workflow `evacuateHost`, in five blocks. */
import type { FailureReport } from './failures.ts';
import type { HostName, MigrationId, RequestId, VmName } from './identity.ts';
import { limits } from './limits.ts';
import { defaultPolicy } from './migration.ts';
import type { MigrationPolicy, MoveSize, SessionCommand } from './migration.ts';
import type { PlacementHost, PlacementRefusal, PlacementVm } from './placement.ts';

// ---- 1. names -------------------------------------------------------------------------------
// Workflow id: identity.evacuationId(host); its moves: identity.evacuationMoveRequest.
export const evacuateHostType = 'evacuateHost';

// ---- 2. input and outcome -------------------------------------------------------------------
/** Daily time in which moves may begin; those that run go on. Minutes of the day, UTC. */
export interface MoveWindow {
  readonly fromMinute: number;
  /** Not in it any more; smaller than `fromMinute` where the window goes over midnight. */
  readonly untilMinute: number;
}
export type EvacuationOrder = 'large-first' | 'small-first' | 'name';

export interface EvacuationPolicy {
  /** The host takes no new VMs from now on, also after the end (drain). */
  readonly cordon: boolean;
  /** Hosts that VMs may go to; null: every host that takes VMs. */
  readonly targets: readonly HostName[] | null;
  /** Moves at a time. */
  readonly concurrency: number;
  /** For all moves together, each running one gets its part; 0: no limit. */
  readonly bandwidthBytesPerSecond: number;
  readonly order: EvacuationOrder;
  /** Before all others, in this order. */
  readonly first: readonly VmName[];
  readonly window: MoveWindow | null;
  /** Of each move; its bandwidth is the part above. */
  readonly move: MigrationPolicy;
  /** A run with more events hands over to a new one; a move costs about 12. */
  readonly historyEventsMax: number;
}

/** Two at a time: enough to hide set-up and hand-over of one behind the copy of the other. */
export const defaultEvacuationPolicy: EvacuationPolicy = {
  cordon: false, targets: null, concurrency: 2, bandwidthBytesPerSecond: 0, order: 'large-first',
  first: [], window: null, move: defaultPolicy, historyEventsMax: limits.evacuationHistoryEventsMax,
};

export interface EvacuateHostInput {
  readonly version: 1;
  readonly host: HostName;
  readonly request: RequestId;
  readonly policy: EvacuationPolicy;
  /** What an earlier run of the same evacuation handed over (continue-as-new). */
  readonly carried?: EvacuationCarried;
}
/** What is not in the ledger: the rest is read again. */
export interface EvacuationCarried {
  readonly startedAtMs: number;
  readonly paused: boolean;
  readonly rows: readonly EvacuationRow[];
}

/** Kinds: `completed` no VM is left; `partial` some were skipped; `cancelled`; `failed`. */
export interface EvacuationOutcome {
  readonly version: 1;
  readonly kind: 'completed' | 'partial' | 'cancelled' | 'failed';
  readonly host: HostName;
  readonly movedCount: number;
  /** VMs that are still there, with what kept them. */
  readonly skipped: readonly { readonly vm: VmName; readonly failure: FailureReport }[];
  readonly totalMs: number;
  /** Durations of the completed moves added up: what one after the other would have taken. */
  readonly movesMs: number;
  readonly by: string | null;
  readonly failure: FailureReport | null;
}

// ---- 3. status ------------------------------------------------------------------------------
/**
 * `busy`: another request moves it. `left`: it went without our doing (other request, deleted).
 */
export type EvacuationVmState = 'waiting' | 'moving' | 'busy' | 'moved' | 'left' | 'skipped';
export interface EvacuationRow extends MoveSize {
  readonly vm: VmName;
  readonly state: EvacuationVmState;
  readonly target: HostName | null;
  /** The last or running move. */
  readonly migration: MigrationId | null;
  /** Tries begun, and how many of them failed in a way that may pass. */
  readonly attempts: number;
  readonly failedCount: number;
  /** Of the last try. */
  readonly startedAtMs: number | null;
  readonly endedAtMs: number | null;
  /** Not before, after a failure that may pass. */
  readonly retryAtMs: number | null;
  /** Why it is skipped, or why the last try failed. */
  readonly failure: FailureReport | null;
  /** Hosts that have refused it. */
  readonly refusals: readonly PlacementRefusal[];
}
export type EvacuationPhase =
  | 'cordon' | 'survey' | 'moving' | 'window' | 'waiting' | 'cancelling' | 'done';
export interface EvacuationStatus {
  readonly version: 1;
  readonly host: HostName;
  readonly request: RequestId;
  readonly phase: EvacuationPhase;
  readonly paused: boolean;
  readonly policy: EvacuationPolicy;
  readonly rows: readonly EvacuationRow[];
  /** Next moment at which the window opens; null while it is open or there is none. */
  readonly opensAtMs: number | null;
  readonly waitingFor: { readonly what: string; readonly sinceMs: number } | null;
  readonly startedAtMs: number;
  readonly cancelledBy: string | null;
  readonly outcome: EvacuationOutcome | null;
}

// ---- 4. messages ----------------------------------------------------------------------------
export const evacuationMessages = {
  /** query → EvacuationStatus */
  status: 'status',
  /** updates → EvacuationStatus */
  pause: 'pause',
  resume: 'resume',
  cancel: 'cancel',
  setBandwidth: 'set-bandwidth',
  setConcurrency: 'set-concurrency',
} as const;

/**
 * Pause: nothing new begins, and moves that copy pause. Cancel: nothing new begins, and moves
 * before their point of no return are cancelled.
 */
export type EvacuationCommand =
  | { readonly kind: 'pause' }
  | { readonly kind: 'resume' }
  | { readonly kind: 'cancel'; readonly by: string }
  | { readonly kind: 'set-bandwidth'; readonly bandwidthBytesPerSecond: number }
  | { readonly kind: 'set-concurrency'; readonly concurrency: number };

// ---- 5. activities --------------------------------------------------------------------------
/** A VM of the host as the ledger has it. */
export interface SurveyedVm extends PlacementVm {
  readonly desired: 'running' | 'stopped';
  /** An open migration, whoever asked for it; null when none. */
  readonly migration: MigrationId | null;
}
export interface HostSurvey {
  readonly vms: readonly SurveyedVm[];
  readonly hosts: readonly PlacementHost[];
}

/** Steps on the control worker's queue. */
export interface EvacuationActivities {
  /** Ledger event CordonHost. Idempotent. Failures: host/unknown, ownership/*. */
  cordonHost(input: { readonly host: HostName }): Promise<void>;
  /** Reads the ledger. Failures: host/unknown, ownership/unreachable. */
  surveyHost(input: { readonly host: HostName }): Promise<HostSurvey>;
  /** Gives a command to a move as a client would; answers false where the move refused it. */
  commandMove(input: {
    readonly migration: MigrationId; readonly command: SessionCommand;
  }): Promise<boolean>;
}
