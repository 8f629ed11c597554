/**
 * What a client does with moves: start or join, command, watch, wait. The rules of ids are here and
 * nowhere else: the same request joins, a finished request answers its outcome again.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  ServiceError, WorkflowExecutionAlreadyStartedError, WorkflowNotFoundError,
  WorkflowUpdateFailedError,
} from '@temporalio/client';
import type { Client, WorkflowHandle } from '@temporalio/client';
import {
  defineSearchAttributeKey, SearchAttributeType, TypedSearchAttributes,
} from '@temporalio/common';
import type { Payload } from '@temporalio/common';
import { CodedError, readFailure } from '../contracts/failures.ts';
import { controlTaskQueue, migrationId } from '../contracts/identity.ts';
import type { MigrationId } from '../contracts/identity.ts';
import { timing } from '../contracts/limits.ts';
import {
  migrateVmType, migrationMessages, migrationSearchAttributes,
} from '../contracts/migration.ts';
import type { CheckProgress } from '../contracts/exactness.ts';
import {
  checkPercent, neverFalling, percentOf, refinedPhase,
} from '../contracts/migration-percent.ts';
import type {
  MigrateVmInput, MigrationOutcome, MigrationStatus, SessionCommand, SessionProgress,
} from '../contracts/migration.ts';

type MigrationHandle = WorkflowHandle<(input: MigrateVmInput) => Promise<MigrationOutcome>>;

/** The move's own activities, whose heartbeats carry SessionProgress. */
const copyingActivities = ['copyDisk', 'copyMemoryAndSwitchOver'];
/** The one whose heartbeats carry CheckProgress. */
const checkingActivity = 'verifyTarget';

/** A frontend that restarts or aborts a workflow task answers again within half a second. */
const commandAttemptsMax = 3;
const commandRetryMs = 250;

const updateNames: Readonly<Record<SessionCommand['kind'], string>> = {
  'pause': migrationMessages.pause,
  'resume': migrationMessages.resume,
  'cancel': migrationMessages.cancel,
  'set-bandwidth': migrationMessages.setBandwidth,
  'set-downtime-budget': migrationMessages.setDowntimeBudget,
  'post-copy-now': migrationMessages.postCopyNow,
};

/** The coded failure inside an error of Temporal's client, else the error itself. */
export function codedError(error: unknown, context: string): unknown {
  if (error instanceof ServiceError) {
    return new CodedError('temporal/unreachable', `${context}: ${error.message}`, error);
  }
  if (error instanceof WorkflowNotFoundError) return new CodedError('migration/unknown', context);
  const failure = readFailure(error);
  return failure === null ? error : new CodedError(failure.code, failure.detail, error);
}

/**
 * Starts the move, joins it where the same request already runs, or answers the handle of the
 * finished one. A request whose workflow was terminated or failed starts again under its id.
 */
export async function startMigration(
  client: Client,
  input: MigrateVmInput,
): Promise<{ readonly handle: MigrationHandle; readonly migration: MigrationId }> {
  const migration = migrationId(input.vm, input.request);
  const keyword = (name: string, value: string) =>
    ({ key: defineSearchAttributeKey(name, SearchAttributeType.KEYWORD), value });
  try {
    const handle: MigrationHandle = await client.workflow.start(migrateVmType, {
      workflowId: migration,
      taskQueue: controlTaskQueue,
      args: [input],
      workflowTaskTimeout: timing.workflowTaskTimeoutMs,
      workflowIdConflictPolicy: 'USE_EXISTING',
      workflowIdReusePolicy: 'ALLOW_DUPLICATE_FAILED_ONLY',
      staticSummary: `${input.vm} to ${input.target}`,
      typedSearchAttributes: new TypedSearchAttributes([
        keyword(migrationSearchAttributes.vm, input.vm),
        keyword(migrationSearchAttributes.target, input.target),
        keyword(migrationSearchAttributes.outcome, 'running'),
      ]),
    });
    return { handle, migration };
  } catch (error) {
    if (!(error instanceof WorkflowExecutionAlreadyStartedError)) {
      throw codedError(error, migration);
    }
    return { handle: client.workflow.getHandle(migration), migration };
  }
}

/** Gives a command; answers the status after it took effect. Failures: the refusal's code. */
export async function commandMigration(
  client: Client,
  migration: MigrationId,
  command: SessionCommand,
): Promise<MigrationStatus> {
  const { kind, ...rest } = command;
  const handle = client.workflow.getHandle(migration);
  // The same id again is the same update, so a call whose answer was lost may be repeated; a move
  // is cancelled once, however often that is asked for.
  const updateId = kind === 'cancel' ? kind : randomUUID();
  const options = { args: [rest] as [object], updateId };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await handle.executeUpdate<MigrationStatus, [object]>(updateNames[kind], options);
    } catch (error) {
      if (!(error instanceof ServiceError) || attempt === commandAttemptsMax) {
        const told = error instanceof WorkflowUpdateFailedError ? error.cause : error;
        throw codedError(told, migration);
      }
      await sleep(commandRetryMs);
    }
  }
}

/** Query and heartbeat together. */
export interface MigrationView {
  /** With `progress` of the last heartbeat where a copying step is running. */
  readonly status: MigrationStatus;
  /** Of the last heartbeat while the target compares its image, null otherwise. */
  readonly check: CheckProgress | null;
  /** Attempts of the copying step so far, 0 when none is running. */
  readonly attempt: number;
  /** Last failure of a step that is being repeated, for `novacron why`. */
  readonly lastFailure: string | null;
}

type PendingActivity = NonNullable<
  Awaited<ReturnType<MigrationHandle['describe']>>['raw']['pendingActivities']>[number];

/** What the last heartbeat said, with the estimate as it stands now. */
async function lastTold<Told extends { readonly etaMs: number | null }>(
  client: Client, step: PendingActivity | undefined,
): Promise<Told | null> {
  const [first] = step?.heartbeatDetails?.payloads ?? [];
  if (first === undefined) return null;
  const { payloadCodecs, payloadConverter } = client.options.loadedDataConverter;
  let decoded: Payload[] = [first];
  for (const codec of payloadCodecs.toReversed()) decoded = await codec.decode(decoded);
  const [payload] = decoded;
  const told = payload === undefined ? null : payloadConverter.fromPayload<Told | null>(payload);
  const { seconds, nanos } = step?.lastHeartbeatTime ?? {};
  const toldAtMs = Number(seconds ?? 0) * 1e3 + (nanos ?? 0) / 1e6;
  return told === null || toldAtMs === 0 ? told : agedEta(told, Date.now() - toldAtMs);
}

/**
 * The estimate as it stands now: a heartbeat is up to a second old, and the ETA of a short move
 * would be wrong by that. Temporal's clock stamped it and ours reads it, so a difference between
 * the two counts as age, up to the limit.
 */
export function agedEta<Told extends {
  readonly etaMs: number | null; readonly paused?: boolean;
}>(told: Told, ageMs: number): Told {
  if (told.etaMs === null || told.paused === true) return told;
  const age = Math.min(Math.max(0, ageMs), timing.heartbeatTimeoutMs);
  return { ...told, etaMs: Math.max(0, told.etaMs - age) };
}

/** Phase and percent as the newer figures have them. */
function withProgress(status: MigrationStatus, progress: SessionProgress): MigrationStatus {
  const fresh = percentOf(status.phase, progress, status.size);
  const percent = neverFalling(status.percent, fresh);
  return { ...status, progress, percent, phase: refinedPhase(status.phase, progress) };
}

const withCheck = (status: MigrationStatus, check: CheckProgress | null): MigrationStatus =>
  check === null || status.phase !== 'verify' ? status
    : { ...status, percent: neverFalling(status.percent, checkPercent(check)) };

/**
 * The workflow's status with the figures of the newest heartbeat, which the workflow does not see.
 * Percent may fall between two calls when the guest dirties faster than is sent: who watches keeps
 * the largest. As often as one likes: a client asks about a move once at a time, because while no
 * control worker answers looks would wait by the hundred, to be answered before the move goes on.
 * Failure: migration/unknown.
 */
export function viewMigration(client: Client, migration: MigrationId): Promise<MigrationView> {
  const asked = looks.get(client) ?? new Map<MigrationId, Promise<MigrationView>>();
  looks.set(client, asked);
  const known = asked.get(migration);
  if (known !== undefined) return known;
  const look = askView(client, migration).finally(() => asked.delete(migration));
  asked.set(migration, look);
  return look;
}

/** Looks that wait for their answer. */
const looks = new WeakMap<Client, Map<MigrationId, Promise<MigrationView>>>();

async function askView(client: Client, migration: MigrationId): Promise<MigrationView> {
  const handle = client.workflow.getHandle(migration);
  try {
    const [status, { raw }] = await Promise.all([
      handle.query<MigrationStatus>(migrationMessages.status),
      handle.describe(),
    ]);
    const pending = raw.pendingActivities ?? [];
    const copying = pending.find(
      ({ activityType }) => copyingActivities.includes(activityType?.name ?? ''),
    );
    const failing = pending.find(({ lastFailure }) => (lastFailure ?? null) !== null);
    const progress = await lastTold<SessionProgress>(client, copying);
    const checking = pending.find(({ activityType }) => activityType?.name === checkingActivity);
    const check = await lastTold<CheckProgress>(client, checking);
    return {
      status: withCheck(progress === null ? status : withProgress(status, progress), check),
      check,
      attempt: copying?.attempt ?? 0,
      lastFailure: failing === undefined ? null
        : `${failing.activityType?.name ?? '?'}: ${failing.lastFailure?.message ?? '?'}`,
    };
  } catch (error) {
    throw codedError(error, migration);
  }
}

/** Waits for the outcome. Failures: migration/unknown; terminated: migration/cancelled. */
export async function migrationOutcome(
  client: Client,
  migration: MigrationId,
): Promise<MigrationOutcome> {
  const handle: MigrationHandle = client.workflow.getHandle(migration);
  try {
    return await handle.result();
  } catch (error) {
    if (error instanceof Error && error.cause instanceof Error
      && error.cause.name === 'TerminatedFailure') {
      throw new CodedError('migration/cancelled', `${migration} was terminated`, error);
    }
    throw codedError(error, migration);
  }
}
