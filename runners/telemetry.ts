/**
 * What a process tells about itself: logs (pino, without secrets), metrics (Prometheus) and health.
 * Decides how it is served; which figures and checks exist is up to each process.
 */
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { pino, stdTimeFunctions } from 'pino';
import type { DestinationStream, Logger } from 'pino';
import { collectDefaultMetrics, Registry } from 'prom-client';

/** Fields that never reach a log, wherever they stand in the first three levels. */
const secretFields = ['secret', 'token', 'password', 'key', 'keyPem', 'privateKey', 'authorization',
  'payloadKeys', 'cookie'];
const redactPaths = secretFields.flatMap((field) => [field, `*.${field}`, `*.*.${field}`]);
/** A scraper asks every few seconds with one connection. */
const connectionCountMax = 16;
const requestTimeoutMs = 5_000;
/** A check that takes longer counts as failed. */
const checkTimeoutMs = 2_000;

/** Logger of a process: JSON lines on stdout, ISO time, `process` and `name` in each line. */
export function createLogger(
  { process: processName, name, level = 'info', destination }: {
    readonly process: string; readonly name: string; readonly level?: string;
    readonly destination?: DestinationStream;
  },
): Logger {
  const options = {
    level,
    base: { process: processName, name },
    timestamp: stdTimeFunctions.isoTime,
    redact: { paths: redactPaths, censor: '[hidden]' },
    formatters: { level: (label: string) => ({ level: label }) },
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}

/** Registry of a process with Node's and the process's own figures under `novacron_`. */
export function createMetrics(
  { process: processName, name }: { readonly process: string; readonly name: string },
): Registry {
  const registry = new Registry();
  registry.setDefaultLabels({ process: processName, name });
  collectDefaultMetrics({ register: registry, prefix: 'novacron_' });
  return registry;
}

/** A named question about this process; throws or rejects when the answer is bad. */
export type HealthCheck = () => void | Promise<void>;

/** Answer of /healthz, with status 200 when all is well and 503 otherwise. */
export interface HealthReport {
  readonly version: 1;
  readonly healthy: boolean;
  readonly checks: Readonly<Record<string, 'ok' | string>>;
}

async function runCheck(check: HealthCheck): Promise<'ok' | string> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`no answer in ${checkTimeoutMs} ms`)),
    checkTimeoutMs);
  try {
    await Promise.race([Promise.resolve().then(check), late.promise]);
    return 'ok';
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    clearTimeout(timer);
  }
}

/** Runs all checks at once; each has two seconds. */
export async function checkHealth(
  checks: Readonly<Record<string, HealthCheck>>,
): Promise<HealthReport> {
  const results = await Promise.all(Object.entries(checks).map(async ([name, check]) =>
    [name, await runCheck(check)] as const));
  return {
    version: 1,
    healthy: results.every(([, result]) => result === 'ok'),
    checks: Object.fromEntries(results),
  };
}

async function answer(
  { request, response, registry, checks, extraMetrics }: {
    request: IncomingMessage; response: ServerResponse; registry: Registry;
    checks: Readonly<Record<string, HealthCheck>>; extraMetrics: () => Promise<string> | string;
  },
): Promise<void> {
  const reply = (status: number, type: string, body: string): void => {
    response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(body);
  };
  const [route] = (request.url ?? '').split('?');
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    reply(405, 'text/plain', 'GET only\n');
  } else if (route === '/metrics') {
    reply(200, registry.contentType, `${await registry.metrics()}${await extraMetrics()}`);
  } else if (route === '/healthz') {
    const report = await checkHealth(checks);
    reply(report.healthy ? 200 : 503, 'application/json', `${JSON.stringify(report)}\n`);
  } else {
    reply(404, 'text/plain', '/metrics or /healthz\n');
  }
}

export interface TelemetryServer {
  readonly port: number;
  close(): Promise<void>;
}

/**
 * Serves /metrics and /healthz on a loopback or management address; bounded connections, no bodies
 * read, slow clients cut after 5 s. `extraMetrics` adds text in Prometheus' format, for figures
 * that another library keeps (Temporal's SDK).
 */
export async function serveTelemetry(
  { address, port, registry, checks, logger, extraMetrics = () => '' }: {
    readonly address: string; readonly port: number; readonly registry: Registry;
    readonly checks: Readonly<Record<string, HealthCheck>>; readonly logger: Logger;
    readonly extraMetrics?: () => Promise<string> | string;
  },
): Promise<TelemetryServer> {
  const server = createServer((request, response) => {
    request.resume();
    answer({ request, response, registry, checks, extraMetrics }).catch((error: unknown) => {
      logger.error({ err: error }, 'telemetry request failed');
      if (!response.headersSent) response.writeHead(500);
      response.end();
    });
  });
  server.maxConnections = connectionCountMax;
  server.requestTimeout = requestTimeoutMs;
  server.headersTimeout = requestTimeoutMs;
  server.timeout = requestTimeoutMs;
  const listening = Promise.withResolvers<void>();
  server.once('error', listening.reject);
  server.listen(port, address, listening.resolve);
  await listening.promise;
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeAllConnections();
      await closed;
    },
  };
}
