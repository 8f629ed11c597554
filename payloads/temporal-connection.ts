/**
 * How every process of ours reaches Temporal: address, TLS, namespace, payload codec. Used by the
 * control worker, the host runners and the command.
 */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Client, Connection } from '@temporalio/client';
import type { ConnectionOptions } from '@temporalio/client';
import type { DataConverter, LoadedDataConverter } from '@temporalio/common';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';
import { createPayloadCodec } from './payload-codec.ts';
import { openPayloadKeys } from './payload-keys.ts';

/** The `temporal` member of a process's configuration file; `tls` null only on loopback. */
export const temporalTarget = z.strictObject({
  /** host:port of the frontend, or of the TLS front before a development server. */
  address: z.string().regex(/^[^\s/]+:\d{1,5}$/),
  namespace: z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}$/),
  tls: z.strictObject({
    certPath: z.string(),
    keyPath: z.string(),
    caPath: z.string(),
    /** Name in the server's certificate, null: the address's host part. */
    serverName: z.string().nullable().default(null),
  }).nullable(),
});
export type TemporalTarget = z.infer<typeof temporalTarget>;

/** How long a first connection may take before it counts as failed. */
const connectTimeoutMs = 10_000;

/** Path for `dataConverter.failureConverterPath` and the workflow bundle. */
export const failureConverterPath = fileURLToPath(new URL('failure-converter.ts', import.meta.url));

const isLoopback = (address: string): boolean =>
  /^(127\.\d{1,3}\.\d{1,3}\.\d{1,3}|localhost|\[::1\]):/.test(address);

/**
 * Options that both `Connection.connect` and `NativeConnection.connect` take. Plain text is refused
 * to anything but loopback (`input/invalid`).
 */
export async function temporalConnectionOptions(
  target: TemporalTarget,
): Promise<Pick<ConnectionOptions, 'address' | 'tls'>> {
  const { address, tls } = target;
  if (tls === null) {
    if (isLoopback(address)) return { address };
    throw new CodedError('input/invalid', `temporal.tls is needed to reach ${address}`);
  }
  const [crt, key, ca] = await Promise.all(
    [tls.certPath, tls.keyPath, tls.caPath].map((path) => readFile(path)),
  );
  if (crt === undefined || key === undefined || ca === undefined) {
    throw new CodedError('internal', 'three files were read');
  }
  return {
    address,
    tls: {
      clientCertPair: { crt, key },
      serverRootCACertificate: ca,
      ...(tls.serverName === null ? {} : { serverNameOverride: tls.serverName }),
    },
  };
}

/** Data converter for workers, which load converters by path. Null keys: nothing is encrypted. */
export const workerDataConverter = (payloadKeysPath: string | null): DataConverter => ({
  failureConverterPath,
  payloadCodecs: payloadKeysPath === null
    ? [] : [createPayloadCodec(openPayloadKeys(payloadKeysPath))],
});

/** The same for clients that decode by themselves (pending activities, codec server). */
export const payloadCodecOf = (
  payloadKeysPath: string | null,
): LoadedDataConverter['payloadCodecs'] => payloadKeysPath === null
  ? [] : [createPayloadCodec(openPayloadKeys(payloadKeysPath))];

/** A client with its connection; `close` when done. Failure: temporal/unreachable. */
export async function connectTemporal(
  target: TemporalTarget,
  payloadKeysPath: string | null,
): Promise<Client> {
  const options = await temporalConnectionOptions(target);
  let connection: Connection;
  try {
    connection = await Connection.connect({ ...options, connectTimeout: connectTimeoutMs });
  } catch (cause) {
    throw new CodedError('temporal/unreachable', target.address, cause);
  }
  return new Client({
    connection,
    namespace: target.namespace,
    dataConverter: workerDataConverter(payloadKeysPath),
  });
}

