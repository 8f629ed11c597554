/**
 * The contract of the workflows `createVm`, `deleteVm`, `startVm`, `stopVm` and `resolveVm`, in
 * five blocks.
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
