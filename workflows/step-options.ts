/**
 * Time-outs and retries of every kind of step, as proxies: the only place where they are chosen.
 * Retries end at the codes that the failure table calls not retryable.
 */
import { ActivityCancellationType, proxyActivities } from '@temporalio/workflow';
import type { ActivityOptions, RetryPolicy } from '@temporalio/workflow';
import { nonRetryableCodes } from '../contracts/failures.ts';
import type { HostName } from '../contracts/identity.ts';
import { controlTaskQueue, hostTaskQueue } from '../contracts/identity.ts';
import { timing } from '../contracts/limits.ts';
import type { EvacuationActivities } from '../contracts/evacuation.ts';
import type { ControlActivities, HostActivities } from '../contracts/migration.ts';
import type {
  LifecycleControlActivities, LifecycleHostActivities,
} from '../contracts/vm-lifecycle.ts';

const retry: RetryPolicy = {
  initialInterval: 100,
  backoffCoefficient: 2,
  maximumInterval: 3_000,
  nonRetryableErrorTypes: [...nonRetryableCodes],
};
const hostDefaults = {
  retry,
  heartbeatTimeout: timing.heartbeatTimeoutMs,
  scheduleToStartTimeout: timing.hostSilentMsMax,
  // The next step may undo this one: it waits until the attempt is known to be over.
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
} satisfies ActivityOptions;

/** A step that answers in seconds; two minutes cover a slow disk and a restarting runner. */
const shortStepMs = 120_000;
/** A command must answer its caller within a second; a few are for a session that is starting. */
const commandMs = 4_000;
/** After the point of no return the target is waited for longer: its guest runs. */
const targetSilentMs = 600_000;
/** Post-copy pulls its pages at the pace of the link; a day is far beyond any memory. */
const verifyMs = 24 * 3_600_000;

export type HostSteps = HostActivities & LifecycleHostActivities;
export type ControlSteps =
  ControlActivities & LifecycleControlActivities & EvacuationActivities;

const onHost = (host: HostName, options: ActivityOptions): HostSteps =>
  proxyActivities<HostSteps>({ ...hostDefaults, taskQueue: hostTaskQueue(host), ...options });

/** Steps that answer in seconds. */
export const hostSteps = (host: HostName): HostSteps =>
  onHost(host, { startToCloseTimeout: shortStepMs, scheduleToCloseTimeout: shortStepMs });

/** A stop takes as long as the guest may; its limits follow. */
export const stopSteps = (host: HostName, graceMs: number): HostSteps => onHost(host, {
  startToCloseTimeout: graceMs + shortStepMs,
  scheduleToCloseTimeout: graceMs + shortStepMs,
});

/** The two that copy, bounded by what is left of the deadline. */
export const copySteps = (host: HostName, remainingMs: number): HostSteps => onHost(host, {
  startToCloseTimeout: remainingMs + shortStepMs,
  scheduleToCloseTimeout: remainingMs + shortStepMs,
});

/** Commands to the session, and looks at it. */
export const commandSteps = (host: HostName): HostSteps => onHost(host, {
  scheduleToStartTimeout: commandMs,
  startToCloseTimeout: commandMs,
  scheduleToCloseTimeout: commandMs,
  cancellationType: ActivityCancellationType.TRY_CANCEL,
});

/** Forward only: the target's part after the point of no return. */
export const forwardSteps = (host: HostName): HostSteps => onHost(host, {
  scheduleToStartTimeout: targetSilentMs,
  startToCloseTimeout: verifyMs,
});

/** Ledger steps before the point of no return. */
export const controlSteps: ControlSteps = proxyActivities<ControlSteps>({
  retry,
  taskQueue: controlTaskQueue,
  startToCloseTimeout: 10_000,
  scheduleToCloseTimeout: shortStepMs,
});

/**
 * The ledger's word on a failover: asked again as soon as it may have changed, and given up when
 * the lease must have run out long ago if anybody had let it.
 */
export const failoverSteps: ControlSteps = proxyActivities<ControlSteps>({
  retry: {
    ...retry, initialInterval: timing.failoverLookEveryMs, backoffCoefficient: 1,
  },
  taskQueue: controlTaskQueue,
  startToCloseTimeout: 10_000,
  scheduleToCloseTimeout: 3 * timing.leaseTtlMs,
});

/** Ledger steps that must be decided: repeated until the ledger answers. */
export const decidingSteps: ControlSteps = proxyActivities<ControlSteps>({
  retry,
  taskQueue: controlTaskQueue,
  startToCloseTimeout: 10_000,
});
