/** Temporal's runtime in our long-lived workers: where its logs and its figures go. */
import { Runtime } from '@temporalio/worker';
import type { Logger } from 'pino';
import { freePort } from './free-port.ts';

/**
 * Installs Temporal's runtime once a process: its logs go to `logger`, signals stay ours. Answers
 * how to read the SDK's own figures, which its core serves on a loopback port.
 */
export async function installTemporalRuntime(logger: Logger): Promise<() => Promise<string>> {
  const port = await freePort();
  Runtime.install({
    shutdownSignals: [],
    logger: {
      log: (level, message, meta) => {
        const line = level === 'ERROR' ? 'error' : level === 'WARN' ? 'warn' : 'debug';
        logger[line]({ ...meta }, message);
      },
      trace: (message, meta) => logger.trace({ ...meta }, message),
      debug: (message, meta) => logger.debug({ ...meta }, message),
      info: (message, meta) => logger.debug({ ...meta }, message),
      warn: (message, meta) => logger.warn({ ...meta }, message),
      error: (message, meta) => logger.error({ ...meta }, message),
    },
    telemetryOptions: { metrics: { prometheus: { bindAddress: `127.0.0.1:${port}` } } },
  });
  return async () => {
    const reply = await fetch(`http://127.0.0.1:${port}/metrics`).catch(() => null);
    return reply?.ok === true ? reply.text() : '';
  };
}
