/**
 * What a host runner does for its activities, step by step and without Temporal. The runner
 * implements it; host-activities.ts adds attempts, heartbeats, cancellation and coded failures.
 *
 * Rules for an implementation:
 * 1. Steps are idempotent by `migration` (moves) or by (VM, epoch) (life cycle). A repeated step
 *    answers what the first one answered; it may arrive while the first is still running, because
 *    a timed-out attempt does not stop what it started: steps of one VM take turns in the runner.
 * 2. Before it makes something, a step reads the ledger and refuses (`ownership/refused` or
 *    `migration/cancelled`) when the migration is not open any more: a late `prepareTarget` after
 *    `discardTarget` must not leave anything behind.
 * 3. Sessions (`copyDisk`, `copyMemoryAndSwitchOver`) belong to the runner, not to the call.
 *    Calling while one runs joins it. An aborted `signal` means only that this caller no longer waits: the
 *    method rejects at once, the session goes on.
 * 4. A session counts as attended while a call of 3. waits for it. Unattended for
 *    `timing.sessionUnattendedMsMax` it ends itself: before Quiesced it proposes Abort and the VM
 *    goes on; after it the ledger decides as always. Thus Terminate never leaves a session behind.
 * 5. Failures are CodedError of the closed list; `retryable` there decides whether the same step is
 *    called again.
 */
import type { CheckProgress } from '../contracts/exactness.ts';
import type {
  HostActivities, SessionCommand, SessionOutcome, SessionProgress, StepInput, TargetEndpoint,
  MigrationPolicy,
} from '../contracts/migration.ts';
import type { LifecycleHostActivities } from '../contracts/vm-lifecycle.ts';

/** One call of an operation. */
export interface OperationCall {
  /** Aborted when nobody waits for this call any more (cancelled, timed out, runner stops). */
  readonly signal: AbortSignal;
}

/** A step that answers in seconds; the heartbeat is sent around it. */
type ShortStep<Step> = Step extends (input: infer Input) => Promise<infer Output>
  ? (input: Input, call: OperationCall) => Promise<Output>
  : never;

export interface HostOperations {
  readonly inspectVm: ShortStep<HostActivities['inspectVm']>;
  /**
   * Failures: preflight/*, host/cordoned. Touches nothing. What this same migration has already
   * prepared here is not a reason to refuse (a workflow that was reset asks again).
   */
  readonly checkTarget: ShortStep<HostActivities['checkTarget']>;
  readonly prepareTarget: ShortStep<HostActivities['prepareTarget']>;
  /**
   * Resolves when the disks are in sync; the mirror stays on. A VM without disks resolves at once.
   * Failures: migration/cancelled after a cancel command, migration/deadline, disk/*, link/*.
   */
  copyDisk(
    input: StepInput & { readonly endpoint: TargetEndpoint; readonly policy: MigrationPolicy },
    call: OperationCall,
  ): Promise<void>;
  /**
   * Resolves with the session's end, again and again with the same one once it has ended (kept
   * until `releaseSource` or `abortSource`). `policy.deadlineMs` is what is left of the deadline.
   */
  copyMemoryAndSwitchOver(
    input: StepInput & { readonly endpoint: TargetEndpoint; readonly policy: MigrationPolicy },
    call: OperationCall,
  ): Promise<SessionOutcome>;
  /**
   * Takes effect before it resolves (cancel: the switchover can no longer begin).
   * Failures: migration/past-return, migration/not-here (retryable: session not there yet).
   */
  commandSession(
    input: StepInput & { readonly command: SessionCommand },
    call: OperationCall,
  ): Promise<void>;
  /** A cheap snapshot, called every `timing.heartbeatEveryMs`; null without a session. */
  peekSession(step: StepInput): SessionProgress | null;
  /** How far the comparison that `verifyTarget` waits for is; null where none is running. */
  peekCheck(step: StepInput): CheckProgress | null;
  /** Waits until every page is present and both images are compared; post-copy may take minutes. */
  readonly verifyTarget: ShortStep<HostActivities['verifyTarget']>;
  readonly resolveDamage: ShortStep<HostActivities['resolveDamage']>;
  readonly releaseSource: ShortStep<HostActivities['releaseSource']>;
  readonly abortSource: ShortStep<HostActivities['abortSource']>;
  readonly discardTarget: ShortStep<HostActivities['discardTarget']>;

  readonly createVmFiles: ShortStep<LifecycleHostActivities['createVmFiles']>;
  readonly startVm: ShortStep<LifecycleHostActivities['startVm']>;
  readonly stopVm: ShortStep<LifecycleHostActivities['stopVm']>;
  readonly destroyVmFiles: ShortStep<LifecycleHostActivities['destroyVmFiles']>;
}

