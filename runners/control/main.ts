/**
 * The long-lived control worker: `node runners/control/main.ts --config FILE`. Prints a line with
 * msg "ready" once it polls; SIGTERM drains and ends it.
 */
import { NativeConnection, Worker } from '@temporalio/worker';
import type { Logger } from 'pino';
import { connectTemporal, temporalConnectionOptions } from '../../payloads/temporal-connection.ts';
import { openRevocationList } from '../../payloads/revocation.ts';
import { configPathOf, controlConfig, loadConfig } from '../config.ts';
import type { ControlConfig } from '../config.ts';
import { barredLedger, controlLedgerSteps } from '../barred-ledger.ts';
import { FaultPoints } from '../fault-points.ts';
import { openFaultPoints } from '../fault-points-server.ts';
import { connectLedger } from '../../payloads/ledger-client.ts';
import { createLogger, createMetrics, serveTelemetry } from '../telemetry.ts';
import { installTemporalRuntime } from '../temporal-runtime.ts';
import { serveCodec } from './codec-server.ts';
import { controlDeployment, controlWorkerOptions } from './composition.ts';
import { makeCurrent } from './deployment.ts';
import { failoverBy, watchForFailover } from './failover-watch.ts';

/** A workflow task takes milliseconds, a ledger step at most its ten seconds. */
const drainMs = 12_000;

async function run(config: ControlConfig, logger: Logger): Promise<void> {
  const sdkMetrics = await installTemporalRuntime(logger);
  const revoked = openRevocationList({ path: config.revokedPath, caPath: config.tls.caPath });
  const client = await connectTemporal(config.temporal, config.payloadKeysPath);
  const ledger = connectLedger({ ...config.ledger, tls: config.tls, revoked, logger });
  const points = new FaultPoints();
  const connection = await NativeConnection.connect(
    await temporalConnectionOptions(config.temporal),
  );
  const version = { deploymentName: controlDeployment, buildId: config.buildId };
  const worker = await Worker.create({
    ...(await controlWorkerOptions({
      ledger: barredLedger(ledger, points, controlLedgerSteps),
      client, payloadKeysPath: config.payloadKeysPath,
    })),
    connection,
    namespace: config.temporal.namespace,
    identity: `control@${config.buildId}`,
    shutdownGraceTime: drainMs,
    workerDeploymentOptions: {
      version, useWorkerVersioning: true, defaultVersioningBehavior: 'PINNED',
    },
  });
  const telemetry = config.metrics === null ? null : await serveTelemetry({
    ...config.metrics,
    registry: createMetrics({ process: 'control', name: config.buildId }),
    logger,
    extraMetrics: sdkMetrics,
    checks: {
      worker: () => {
        if (worker.getState() !== 'RUNNING') throw new Error(worker.getState());
      },
      ledger: async () => { await ledger.listHosts(); },
      temporal: async () => { await client.connection.ensureConnected(); },
    },
  });
  const codec = config.codec === null ? null
    : await serveCodec({ ...config.codec, tls: config.tls, revoked, logger,
      payloadKeysPath: config.payloadKeysPath });
  const watch = watchForFailover({ ledger, failover: failoverBy(client), log: logger });
  const faults = await openFaultPoints(config, { points, revoked, log: logger });
  const stop = (): void => {
    logger.info('stopping');
    if (worker.getState() === 'RUNNING') worker.shutdown();
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  const polling = worker.run();
  try {
    const takeOver = config.profile === 'lab' ? 'always' : 'first';
    const isCurrent = await Promise.race([
      makeCurrent(client, version, takeOver), polling.then(() => false),
    ]);
    logger.info({ ...version, isCurrent, temporal: config.temporal.address }, 'ready');
    await polling;
  } finally {
    watch.close();
    await Promise.all([codec?.close(), telemetry?.close(), faults?.close(), ledger.close()]);
    await connection.close();
    await client.connection.close();
  }
}

const config = loadConfig({
  path: configPathOf({ argv: process.argv, environment: process.env }), schema: controlConfig,
});
const logger = createLogger({ process: 'control', name: config.buildId, level: config.logLevel });
try {
  await run(config, logger);
  logger.info('stopped');
} catch (error) {
  logger.fatal({ err: error }, 'control worker failed');
  process.exitCode = 1;
}
