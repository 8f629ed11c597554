/**
 * The control worker as a function: invoked by Temporal when tasks arrive, polls until shortly
 * before the invocation's deadline, then drains and returns. Same parts as main.ts; between two
 * invocations nothing runs. Configuration as in main.ts, through NOVACRON_CONFIG.
 */
import { runWorker } from '@temporalio/lambda-worker';
import { connectTemporal, temporalConnectionOptions } from '../../payloads/temporal-connection.ts';
import { openRevocationList } from '../../payloads/revocation.ts';
import { configPathOf, controlConfig, loadConfig } from '../config.ts';
import { connectLedger } from '../../payloads/ledger-client.ts';
import { createLogger } from '../telemetry.ts';
import { controlDeployment, controlWorkerOptions } from './composition.ts';

/**
 * Shutdown begins so long before the invocation's deadline: the grace for ledger steps, and a
 * second to close connections.
 */
const graceMs = 2_000;
const shutdownBufferMs = 3_000;

const config = loadConfig({
  path: configPathOf({ argv: [], environment: process.env }), schema: controlConfig,
});
const logger = createLogger({ process: 'control', name: config.buildId, level: config.logLevel });
const revoked = openRevocationList({ path: config.revokedPath, caPath: config.tls.caPath });
// Kept between invocations of a warm function; both connect anew when their socket was frozen.
const client = await connectTemporal(config.temporal, config.payloadKeysPath);
const ledger = connectLedger({ ...config.ledger, tls: config.tls, revoked, logger });
const parts = await controlWorkerOptions({
  ledger, client, payloadKeysPath: config.payloadKeysPath,
});
const connectionOptions = await temporalConnectionOptions(config.temporal);

/** The entry point; the event says which task arrived, the worker polls for it and what follows. */
export const handler = runWorker(
  { deploymentName: controlDeployment, buildId: config.buildId },
  (lambda) => {
    Object.assign(lambda.workerOptions, parts, { shutdownGraceTime: graceMs });
    lambda.connectionOptions = connectionOptions as NonNullable<typeof lambda.connectionOptions>;
    lambda.namespace = config.temporal.namespace;
    lambda.shutdownDeadlineBufferMs = shutdownBufferMs;
    lambda.runtimeOptions.telemetryOptions = { logging: { filter: 'WARN', forward: {} } };
  },
);
