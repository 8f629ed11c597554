/** The real backend: Temporal's client and a connection to the ledger, opened when first needed. */
import { connect } from 'node:net';
import type { Client } from '@temporalio/client';
import { CodedError } from '../contracts/failures.ts';
import { evacuationId } from '../contracts/identity.ts';
import { commandEvacuation, startEvacuation, viewEvacuation,
} from '../payloads/evacuation-client.ts';
import { openLedger } from '../payloads/ledger-client.ts';
import { runLifecycle } from '../payloads/lifecycle-client.ts';
import { commandMigration, migrationOutcome, startMigration, viewMigration,
} from '../payloads/migration-client.ts';
import { openRevocationList } from '../payloads/revocation.ts';
import { connectTemporal } from '../payloads/temporal-connection.ts';
import { migrateVmType, migrationSearchAttributes } from '../contracts/migration.ts';
import type { Backend, LedgerView, MigrationRow, Workflows } from './backend.ts';
import { isUnworked } from './failure-of-error.ts';
import { loadOperatorConfig } from './operator-config.ts';
import type { ConfigPlaces, OperatorConfig } from './operator-config.ts';
import { workflowUrl } from './workflow-url.ts';

/** Text of a search attribute: the first value of its list. */
const attribute = (attributes: Readonly<Record<string, unknown>>, name: string): string => {
  const value = attributes[name];
  const first: unknown = Array.isArray(value) ? value[0] : value;
  return typeof first === 'string' ? first : '';
};

/** Visibility query for moves; names are checked before, so they hold no quote. */
export const movesQuery = (
  { vm, openOnly }: { readonly vm: string | null; readonly openOnly: boolean },
): string => [
  `WorkflowType = '${migrateVmType}'`,
  ...(vm === null ? [] : [`${migrationSearchAttributes.vm} = '${vm}'`]),
  ...(openOnly ? ["ExecutionStatus = 'Running'"] : []),
].join(' AND ');

async function listMoves(
  client: Client, { vm, openOnly, countMax }: Parameters<Workflows['listMoves']>[0],
): Promise<readonly MigrationRow[]> {
  const rows: MigrationRow[] = [];
  const query = movesQuery({ vm, openOnly });
  for await (const one of client.workflow.list({ query, pageSize: Math.min(countMax, 200) })) {
    const of = (name: string): string => attribute(one.searchAttributes ?? {}, name);
    const running = one.status.name === 'RUNNING';
    rows.push({
      migration: one.workflowId, vm: of(migrationSearchAttributes.vm),
      source: of(migrationSearchAttributes.source), target: of(migrationSearchAttributes.target),
      phase: running ? of(migrationSearchAttributes.phase) : '',
      outcome: running ? 'running' : of(migrationSearchAttributes.outcome) === 'running'
        ? one.status.name.toLowerCase() : of(migrationSearchAttributes.outcome),
      startedAtMs: one.startTime.getTime(), closedAtMs: one.closeTime?.getTime() ?? null,
    });
    if (rows.length >= countMax) break;
  }
  return rows;
}

/** A control worker answers in milliseconds, a restarted one after it has replayed. */
const answerTimeoutMs = 10_000;

/** For what a control worker has to answer: Temporal itself did, so silence is the worker's. */
async function ofWorker<T>(
  { client, migration, ask }: { client: Client; migration: string; ask: () => Promise<T> },
): Promise<T> {
  try {
    return await client.withDeadline(Date.now() + answerTimeoutMs, ask);
  } catch (error) {
    if (!isUnworked(error)) throw error;
    throw new CodedError('control/unreachable', `nobody answered for ${migration} in `
      + `${answerTimeoutMs / 1_000} s`, error);
  }
}

function workflowsOf(client: Client, config: OperatorConfig): Workflows {
  const { uiUrl, namespace } = config.temporal;
  return {
    startMove: async (input) => {
      const { handle, migration } = await startMigration(client, input);
      const { runId, searchAttributes } = await handle.describe();
      const target = attribute(searchAttributes ?? {}, migrationSearchAttributes.target);
      return { migration, runId, target: target === '' ? null : target };
    },
    viewMove: (migration) => ofWorker({ client, migration,
      ask: () => viewMigration(client, migration) }),
    commandMove: ({ migration, command }) => ofWorker({ client, migration,
      ask: () => commandMigration(client, migration, command) }),
    startEvacuation: async (input) => {
      const { handle, joined } = await startEvacuation(client, input);
      return { runId: (await handle.describe()).runId, joined };
    },
    viewEvacuation: (host) => ofWorker({ client, migration: evacuationId(host),
      ask: () => viewEvacuation(client, host) }),
    commandEvacuation: ({ host, command }) => ofWorker({ client, migration: evacuationId(host),
      ask: () => commandEvacuation(client, host, command) }),
    outcomeOf: (migration) => migrationOutcome(client, migration),
    listMoves: (input) => listMoves(client, input),
    runLifecycle: (request) => runLifecycle(client, request),
    workflowUrl: ({ workflowId, runId }) =>
      uiUrl === null ? null : workflowUrl({ uiUrl, namespace, workflowId, runId }),
  };
}

/** A frontend that is up takes the connection at once, also across a WAN. */
const probeTimeoutMs = 3_000;

/**
 * Asks whether anybody listens: gRPC tries again for ten seconds before it says so, a person at a
 * keyboard should not wait for that.
 */
async function probeTemporal(address: string): Promise<void> {
  const at = address.lastIndexOf(':');
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const socket = connect({ host: address.slice(0, at).replace(/^\[|\]$/g, ''),
    port: Number(address.slice(at + 1)), timeout: probeTimeoutMs });
  const refuse = (why: string): void => reject(new CodedError('temporal/unreachable',
    `${address}: ${why}`));
  socket.once('connect', () => resolve());
  socket.once('timeout', () => refuse(`no answer in ${probeTimeoutMs} ms`));
  socket.once('error', (error) => refuse((error as NodeJS.ErrnoException).code ?? error.message));
  try {
    await promise;
  } finally {
    socket.destroy();
  }
}

async function openClient(config: OperatorConfig): Promise<Client> {
  const { temporal: { uiUrl: _, ...target }, payloadKeysPath } = config;
  await probeTemporal(target.address);
  return connectTemporal(target, payloadKeysPath);
}

/** Opens nothing yet; failures come with the first use and name what did not answer. */
export function connectedBackend(places: ConfigPlaces): Backend {
  let config: OperatorConfig | null = null;
  let client: Promise<Client> | null = null;
  let ledger: Promise<LedgerView> | null = null;
  const configuration = (): OperatorConfig => config ??= loadOperatorConfig(places);
  return {
    config: async () => configuration(),
    workflows: async () => {
      client ??= openClient(configuration());
      return workflowsOf(await client, configuration());
    },
    ledger: () => {
      const { ledger: { address, port }, tls, revokedPath } = configuration();
      ledger ??= Promise.resolve().then(() => openLedger({ address, port, tls,
        revoked: openRevocationList({ path: revokedPath, caPath: tls.caPath }) }));
      return ledger;
    },
    close: async () => {
      await (await ledger?.catch(() => null))?.close();
      await (await client?.catch(() => null))?.connection.close();
    },
  };
}
