/**
 * The contract of the workflows `createVm`, `deleteVm`, `startVm`, `stopVm`, `resolveVm` and
 * `failoverVm`, in five blocks.
 */
import type { DamageChoice } from './exactness.ts';
import type { FailureReport } from './failures.ts';
import type { HostName, Incarnation, RequestId, VmName } from './identity.ts';
import type { VmRunState, VmSpec } from './runner.ts';

// ---- 1. names -------------------------------------------------------------------------------
// Workflow id: identity.lifecycleWorkflowId(step, vm, request).
export const createVmType = 'createVm';
export const deleteVmType = 'deleteVm';
export const startVmType = 'startVm';
export const stopVmType = 'stopVm';
export const resolveVmType = 'resolveVm';
export const failoverVmType = 'failoverVm';

// ---- 2. input and outcome -------------------------------------------------------------------
export interface CreateVmInput {
  readonly version: 1;
  readonly spec: VmSpec;
  readonly host: HostName;
  readonly request: RequestId;
  /** Start it at once; else it is left stopped. */
  readonly start: boolean;
}
export interface VmInput {
  readonly version: 1;
  readonly vm: VmName;
  readonly request: RequestId;
}
export interface StopVmInput extends VmInput {
  /** How long the guest may take to shut down before its VMM is ended, ms; 0 ends it at once. */
  readonly graceMs: number;
}
/** For a VM that a move left damaged. */
export interface ResolveVmInput extends VmInput {
  readonly choice: DamageChoice;
}

/** For a VM whose host is gone. Its request is `failoverRequest(epoch)`. */
export interface FailoverVmInput extends VmInput {
  /** Epoch that is to end; one that has ended already is the same as one that ends now. */
  readonly epoch: number;
  /** Null leaves the choice to the placement. */
  readonly to: HostName | null;
  /** How somebody knows that the old host runs it no more; null waits for the end of its lease. */
  readonly fenceProof: string | null;
}

interface OutcomeCommon {
  readonly version: 1;
  readonly vm: VmName;
  readonly host: HostName | null;
}
/** The VM is as it was asked to be. */
export interface LifecycleCompleted extends OutcomeCommon {
  readonly kind: 'completed';
  readonly runState: VmRunState;
  /** Owner epoch in the ledger; 0 after a delete. */
  readonly epoch: number;
  readonly incarnation: Incarnation | null;
}
export interface LifecycleFailed extends OutcomeCommon {
  readonly kind: 'failed';
  readonly failure: FailureReport;
  readonly compensationFailures: readonly FailureReport[];
}
export interface LifecycleCancelled extends OutcomeCommon {
  readonly kind: 'cancelled';
  readonly compensationFailures: readonly FailureReport[];
}
export type LifecycleOutcome = LifecycleCompleted | LifecycleFailed | LifecycleCancelled;

// ---- 3. status ------------------------------------------------------------------------------
export type LifecyclePhase =
  | 'record' | 'host' | 'start' | 'stop' | 'delete' | 'compensating' | 'done';
export interface LifecycleStatus {
  readonly version: 1;
  readonly vm: VmName;
  readonly phase: LifecyclePhase;
  readonly outcome: LifecycleOutcome | null;
}

// ---- 4. messages ----------------------------------------------------------------------------
export const lifecycleMessages = {
  /** query → LifecycleStatus; there is nothing to command: these are short, cancel by Temporal. */
  status: 'status',
} as const;

// ---- 5. activities --------------------------------------------------------------------------
/** Where the ledger says a VM is. */
export interface VmLocation {
  readonly host: HostName;
  readonly epoch: number;
  readonly desired: 'running' | 'stopped';
  readonly inMigration: boolean;
}

/** Where a VM goes whose host is gone. */
export interface FailoverPlan {
  readonly to: HostName;
  readonly spec: VmSpec;
  /** The VM's epoch where the one that was to end has ended already, null before. */
  readonly decidedEpoch: number | null;
}

/** Steps on the control worker's queue: only the ledger. */
export interface LifecycleControlActivities {
  /** Ledger event Create. Idempotent by (VM, host, spec). Failures: vm/exists, host/unknown, … */
  createEntry(input: { readonly spec: VmSpec; readonly host: HostName }): Promise<VmLocation>;
  /** Failures: vm/unknown, ownership/unreachable. */
  locate(input: { readonly vm: VmName }): Promise<VmLocation>;
  /** Ledger event Desire, under whatever epoch holds. Idempotent. vm/unknown, migration/open. */
  desire(input: {
    readonly vm: VmName;
    readonly desired: 'running' | 'stopped';
  }): Promise<VmLocation>;
  /**
   * Chooses the host. Failures: preflight/local-disk (only its own host can start it),
   * evacuation/no-target, vm/not-running (it is to be stopped).
   */
  planFailover(input: {
    readonly vm: VmName; readonly epoch: number; readonly to: HostName | null;
  }): Promise<FailoverPlan>;
  /**
   * Ledger event Failover. Idempotent by (VM, epoch). Failures: ownership/lease, which is asked
   * again until the lease has run out, ownership/refused.
   */
  proposeFailover(input: {
    readonly vm: VmName; readonly epoch: number; readonly to: HostName;
    readonly fenceProof: string | null;
  }): Promise<VmLocation>;
  /** Ledger event Delete; a VM that is already gone is not an error. */
  deleteEntry(input: { readonly vm: VmName; readonly epoch: number }): Promise<void>;
}

/** What every host step of the life cycle knows. Idempotent by (VM, epoch). */
export interface VmStep {
  readonly version: 1;
  readonly vm: VmName;
  readonly epoch: number;
}

/** Steps on the owner's queue. All heartbeat (without detail). */
export interface LifecycleHostActivities {
  /** Directory and disks. Failures: disk/full, vm/image-refused, preflight/*, input/invalid. */
  createVmFiles(input: VmStep & { readonly spec: VmSpec }): Promise<void>;
  /**
   * Starts it, or answers the one that runs; the host records Started (or Restart) in the ledger
   * before the first instruction. Failures: vm/start-failed, ownership/refused.
   */
  startVm(input: VmStep): Promise<{
    readonly runState: VmRunState;
    readonly incarnation: Incarnation;
    readonly epoch: number;
  }>;
  /** Power button, then after `graceMs` the end of its VMM. A stopped VM is not an error. */
  stopVm(input: VmStep & { readonly graceMs: number }): Promise<void>;
  /** Files go, if the ledger says that the VM is deleted or owned by another. Idempotent. */
  destroyVmFiles(input: VmStep): Promise<void>;
}
