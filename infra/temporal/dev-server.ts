/**
 * Temporal's development server as one process of ours: `node infra/temporal/dev-server.ts --config
 * FILE`. Starts Temporal's CLI on loopback with its SQLite file, prepares the namespace, and puts a
 * mutual TLS front on the lab's bridge. Prints a line with msg "ready"; SIGTERM ends all of it.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import { pino, stdTimeFunctions } from 'pino';
import type { Logger } from 'pino';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { migrationSearchAttributes } from '../../contracts/migration.ts';
import { openRevocationList } from '../../payloads/revocation.ts';
import { connectTemporal } from '../../payloads/temporal-connection.ts';
import { prepareNamespace } from './namespace.ts';
import { serveTlsFront } from './tls-front.ts';

const loopback = '127.0.0.1';
/** A cold start with a new file takes 3.5 s on a busy machine. */
const startMsMax = 60_000;
const retryEveryMs = 200;
/** SQLite closes its file in this time; a kill is safe too, it has a journal. */
const stopMsMax = 8_000;

const port = z.int().min(1).max(65_535);
const devServerConfig = z.strictObject({
  version: z.literal(1),
  /** Program of Temporal's CLI. */
  temporalPath: z.string(),
  databasePath: z.string(),
  namespace: z.string(),
  /** Frontend and UI, on loopback. */
  port,
  uiPort: port,
  /** Base URL of the codec endpoint that the UI asks, null for none. */
  codecEndpoint: z.url().nullable(),
  logLevel: z.enum(['debug', 'info', 'warn', 'error']).default('info'),
  /** Mutual TLS front; null where only processes of this machine's loopback connect. */
  front: z.strictObject({
    listen: z.strictObject({ address: z.string(), port }),
    tls: z.strictObject({ certPath: z.string(), keyPath: z.string(), caPath: z.string() }),
    revokedPath: z.string(),
  }).nullable(),
});
type DevServerConfig = z.infer<typeof devServerConfig>;

function readConfig(): DevServerConfig {
  const flag = process.argv.indexOf('--config');
  const path = flag < 0 ? undefined : process.argv[flag + 1];
  if (path === undefined) throw new CodedError('input/invalid', 'no configuration: --config FILE');
  const parsed = devServerConfig.safeParse(JSON.parse(readFileSync(path, 'utf8')));
  if (parsed.success) return parsed.data;
  throw new CodedError('input/invalid', `${path}: ${z.prettifyError(parsed.error)}`);
}

function startServer(config: DevServerConfig): ChildProcess {
  return spawn(config.temporalPath, [
    'server', 'start-dev',
    '--ip', loopback, '--ui-ip', loopback,
    '--port', String(config.port), '--ui-port', String(config.uiPort),
    '--db-filename', config.databasePath,
    '--namespace', config.namespace,
    '--log-level', 'error', '--log-format', 'json',
    ...(config.codecEndpoint === null ? [] : ['--ui-codec-endpoint', config.codecEndpoint]),
    ...Object.values(migrationSearchAttributes).flatMap(
      (name) => ['--search-attribute', `${name}=Keyword`],
    ),
  ], { stdio: ['ignore', 'inherit', 'inherit'] });
}

/** Connects as soon as the server answers; an early exit of the server is the error. */
async function connected(config: DevServerConfig, server: ChildProcess): Promise<Client> {
  const deadline = performance.now() + startMsMax;
  const { namespace } = config;
  for (;;) {
    if (server.exitCode !== null) {
      throw new CodedError('internal', `${config.temporalPath} ended with ${server.exitCode}`);
    }
    try {
      const client = await connectTemporal(
        { address: `${loopback}:${config.port}`, namespace, tls: null }, null,
      );
      await client.workflowService.describeNamespace({ namespace });
      return client;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(retryEveryMs);
    }
  }
}

async function run(config: DevServerConfig, logger: Logger): Promise<void> {
  await mkdir(dirname(config.databasePath), { recursive: true });
  const server = startServer(config);
  const ended = new Promise<void>((resolve) => server.once('exit', () => resolve()));
  const stop = (): void => { server.kill('SIGTERM'); };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  try {
    const client = await connected(config, server);
    await prepareNamespace(client);
    await client.connection.close();
    const { front } = config;
    const served = front === null ? null : await serveTlsFront({
      listen: front.listen,
      behind: { address: loopback, port: config.port },
      tls: front.tls,
      revoked: openRevocationList({ path: front.revokedPath, caPath: front.tls.caPath }),
      logger,
    });
    logger.info({
      port: config.port, uiPort: config.uiPort, frontPort: served?.port ?? null,
      serverPid: server.pid,
    }, 'ready');
    await ended;
    await served?.close();
  } finally {
    stop();
    await Promise.race([ended, sleep(stopMsMax, undefined, { ref: false })]);
    if (server.exitCode === null && server.signalCode === null) server.kill('SIGKILL');
  }
}

const config = readConfig();
const logger = pino({
  level: config.logLevel, base: { process: 'temporal-dev-server' },
  timestamp: stdTimeFunctions.isoTime, formatters: { level: (label) => ({ level: label }) },
});
try {
  await run(config, logger);
  logger.info('stopped');
  process.exit(0);
} catch (error) {
  logger.fatal({ err: error }, 'development server failed');
  process.exit(1);
}
