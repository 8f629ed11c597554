/**
 * What a client does with the evacuation of a host: start or join, command, look, wait. One runs a
 * host at a time; the same request joins it, another one is refused with the running request.
 */
import {
  WorkflowExecutionAlreadyStartedError, WorkflowUpdateFailedError,
} from '@temporalio/client';
import type { Client, WorkflowHandle } from '@temporalio/client';
import {
  defineSearchAttributeKey, SearchAttributeType, TypedSearchAttributes,
} from '@temporalio/common';
import { evacuateHostType, evacuationMessages } from '../contracts/evacuation.ts';
import type {
  EvacuateHostInput, EvacuationCommand, EvacuationOutcome, EvacuationStatus,
} from '../contracts/evacuation.ts';
import { evacuationProgress } from '../contracts/evacuation-progress.ts';
import type { EvacuationProgress } from '../contracts/evacuation-progress.ts';
import { CodedError } from '../contracts/failures.ts';
import {
  controlTaskQueue, evacuationId, evacuationRequestLengthMax,
} from '../contracts/identity.ts';
import type { HostName, MigrationId } from '../contracts/identity.ts';
import { timing } from '../contracts/limits.ts';
import { migrationSearchAttributes } from '../contracts/migration.ts';
import type { MigrationStatus } from '../contracts/migration.ts';
import { codedError, viewMigration } from './migration-client.ts';

type EvacuationHandle =
  WorkflowHandle<(input: EvacuateHostInput) => Promise<EvacuationOutcome>>;

/** As `codedError`, of a workflow that is not there: evacuation/unknown. */
function evacuationError(error: unknown, host: HostName): unknown {
  const coded = codedError(error, evacuationId(host));
  return coded instanceof CodedError && coded.code === 'migration/unknown'
    ? new CodedError('evacuation/unknown', host, error) : coded;
}

/**
 * Starts it, or joins it where the same request runs. Begun again after its end it looks at the
 * host anew. Failures: evacuation/open with the request that runs, input/invalid.
 */
export async function startEvacuation(
  client: Client, input: EvacuateHostInput,
): Promise<{ readonly handle: EvacuationHandle; readonly joined: boolean }> {
  const { host, request } = input;
  const workflowId = evacuationId(host);
  if (request.length > evacuationRequestLengthMax) {
    throw new CodedError('input/invalid',
      `the request id of an evacuation has at most ${evacuationRequestLengthMax} characters`);
  }
  const keyword = (name: string, value: string) =>
    ({ key: defineSearchAttributeKey(name, SearchAttributeType.KEYWORD), value });
  try {
    const handle: EvacuationHandle = await client.workflow.start(evacuateHostType, {
      workflowId,
      taskQueue: controlTaskQueue,
      args: [input],
      workflowTaskTimeout: timing.workflowTaskTimeoutMs,
      workflowIdConflictPolicy: 'FAIL',
      workflowIdReusePolicy: 'ALLOW_DUPLICATE',
      staticSummary: `evacuate ${host}`,
      typedSearchAttributes: new TypedSearchAttributes([
        keyword(migrationSearchAttributes.source, host),
        keyword(migrationSearchAttributes.outcome, 'running'),
      ]),
    });
    return { handle, joined: false };
  } catch (error) {
    if (!(error instanceof WorkflowExecutionAlreadyStartedError)) {
      throw evacuationError(error, host);
    }
  }
  const handle: EvacuationHandle = client.workflow.getHandle(workflowId);
  const running = await evacuationStatus(client, host);
  if (running.request === request) return { handle, joined: true };
  throw new CodedError('evacuation/open', `${workflowId}, request ${running.request}`);
}

/** The status of the running evacuation of a host, or of the last. Failure: evacuation/unknown. */
export async function evacuationStatus(client: Client, host: HostName): Promise<EvacuationStatus> {
  try {
    return await client.workflow.getHandle(evacuationId(host))
      .query<EvacuationStatus>(evacuationMessages.status);
  } catch (error) {
    throw evacuationError(error, host);
  }
}

/** The whole and each of its running moves, with the figures of their newest heartbeats. */
export interface EvacuationView {
  readonly status: EvacuationStatus;
  readonly moves: ReadonlyMap<MigrationId, MigrationStatus>;
  readonly progress: EvacuationProgress;
  /** How Temporal closed it (completed, terminated, …); null while it runs. */
  readonly closedAs: string | null;
}

/** Costs two calls a running move: for a look a second. Failure: evacuation/unknown. */
export async function viewEvacuation(client: Client, host: HostName): Promise<EvacuationView> {
  const [status, { status: { name } }] = await Promise.all([
    evacuationStatus(client, host),
    client.workflow.getHandle(evacuationId(host)).describe(),
  ]).catch((error: unknown) => { throw evacuationError(error, host); });
  const running = status.rows.flatMap(({ state, migration }) =>
    state === 'moving' && migration !== null ? [migration] : []);
  const views = await Promise.all(running.map(async (migration) => {
    // A move that has just begun or ended is told by its row alone.
    const view = await viewMigration(client, migration).catch(() => null);
    return view === null ? [] : [[migration, view.status] as const];
  }));
  const moves = new Map(views.flat());
  return {
    status, moves, progress: evacuationProgress(status, moves, Date.now()),
    closedAs: name === 'RUNNING' ? null : name.toLowerCase(),
  };
}

const updateNames: Readonly<Record<EvacuationCommand['kind'], string>> = {
  'pause': evacuationMessages.pause,
  'resume': evacuationMessages.resume,
  'cancel': evacuationMessages.cancel,
  'set-bandwidth': evacuationMessages.setBandwidth,
  'set-concurrency': evacuationMessages.setConcurrency,
};

/** Gives a command; answers the status after it took effect. Failures: the refusal's code. */
export async function commandEvacuation(
  client: Client, host: HostName, command: EvacuationCommand,
): Promise<EvacuationStatus> {
  const { kind, ...rest } = command;
  try {
    return await client.workflow.getHandle(evacuationId(host))
      .executeUpdate<EvacuationStatus, [object]>(updateNames[kind], { args: [rest] });
  } catch (error) {
    throw evacuationError(error instanceof WorkflowUpdateFailedError ? error.cause : error, host);
  }
}

/** Waits for the outcome. Failures: evacuation/unknown; terminated: migration/cancelled. */
export async function evacuationOutcome(
  client: Client, host: HostName,
): Promise<EvacuationOutcome> {
  const handle: EvacuationHandle = client.workflow.getHandle(evacuationId(host));
  try {
    return await handle.result();
  } catch (error) {
    if (error instanceof Error && error.cause instanceof Error
      && error.cause.name === 'TerminatedFailure') {
      throw new CodedError('migration/cancelled', `${evacuationId(host)} was terminated`, error);
    }
    throw evacuationError(error, host);
  }
}
