/**
 * Makes a cluster's namespace ready for NovaCron, and may be repeated: `node
 * infra/temporal/prepare.ts --config FILE`, where FILE is the configuration of a control worker or
 * an operator. Registers the namespace where it is not there, the search attributes and the
 * schedule. Waits while the cluster starts; prints a line with msg "prepared".
 */
import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { connectTemporal, temporalTarget } from '../../payloads/temporal-connection.ts';
import type { TemporalTarget } from '../../payloads/temporal-connection.ts';
import { prepareNamespace, registerNamespace } from './namespace.ts';

/**
 * A cluster that starts needs some ten seconds, a namespace is known to all its parts in ten more.
 */
const waitMsMax = 120_000;
const retryEveryMs = 500;

/** Other fields belong to the process whose configuration it is. */
const configFile = z.looseObject({ temporal: z.looseObject(temporalTarget.shape) });

function readTarget(path: string): TemporalTarget {
  const parsed = configFile.safeParse(JSON.parse(readFileSync(path, 'utf8')));
  if (!parsed.success) {
    throw new CodedError('input/invalid', `${path}: ${z.prettifyError(parsed.error)}`);
  }
  const { address, namespace, tls } = parsed.data.temporal;
  const at = (file: string): string => resolve(dirname(path), file);
  return {
    address, namespace,
    tls: tls === null ? null : {
      ...tls, certPath: at(tls.certPath), keyPath: at(tls.keyPath), caPath: at(tls.caPath),
    },
  };
}

/** Tries until it works; the last failure after `waitMsMax`. */
async function patiently<T>(work: () => Promise<T>): Promise<T> {
  for (const end = performance.now() + waitMsMax;;) {
    try {
      return await work();
    } catch (error) {
      const isOurs = error instanceof CodedError && error.code !== 'temporal/unreachable';
      if (isOurs || performance.now() > end) throw error;
      await sleep(retryEveryMs);
    }
  }
}

const flag = process.argv.indexOf('--config');
const path = flag < 0 ? undefined : process.argv[flag + 1];
try {
  if (path === undefined) throw new CodedError('input/invalid', 'no configuration: --config FILE');
  const target = readTarget(resolve(path));
  const client: Client = await patiently(() => connectTemporal(target, null));
  const isNew = await patiently(() => registerNamespace(client));
  await patiently(() => prepareNamespace(client));
  await client.connection.close();
  const { address, namespace } = target;
  process.stdout.write(`${JSON.stringify({ msg: 'prepared', address, namespace, isNew })}\n`);
} catch (error) {
  process.stderr.write(`prepare: ${(error as Error).message}\n`);
  process.exitCode = 1;
}
