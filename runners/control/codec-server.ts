/**
 * Remote codec for Temporal's UI and command line: POST /encode and /decode over mutual TLS. Only
 * operators, the control worker and the codec role may read what payloads say.
 */
import { createServer } from 'node:https';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { defaultPayloadConverter } from '@temporalio/common';
import type { Payload, PayloadCodec } from '@temporalio/common';
import type { Logger } from 'pino';
import { z } from 'zod';
import { identityUri } from '../../contracts/identity.ts';
import type { TlsMaterial } from '../../payloads/certificates.ts';
import { createPayloadCodec } from '../../payloads/payload-codec.ts';
import { openPayloadKeys } from '../../payloads/payload-keys.ts';
import type { RevocationList } from '../../payloads/revocation.ts';
import { authorizePeer, serverTlsOptions } from '../../payloads/tls.ts';
import type { ExpectedPeer } from '../../payloads/tls.ts';

/** The UI sends a page of history at a time: 4 MiB is Temporal's own limit for a message. */
const bodyBytesMax = 4 << 20;
const payloadCountMax = 10_000;
const connectionCountMax = 32;
const requestTimeoutMs = 10_000;
const readers: readonly ExpectedPeer[] = [
  { role: 'operator' }, { role: 'codec' }, { role: 'control' },
];

const body = z.object({
  payloads: z.array(z.object({
    metadata: z.record(z.string(), z.base64()).default({}),
    data: z.base64().default(''),
  })).max(payloadCountMax),
});

export interface CodecServer {
  readonly port: number;
  close(): Promise<void>;
}
export interface CodecServerOptions {
  readonly listen: { readonly address: string; readonly port: number };
  /** Web origins that may ask from a browser: that of Temporal's UI. */
  readonly origins: readonly string[];
  readonly tls: TlsMaterial;
  readonly revoked: RevocationList;
  readonly payloadKeysPath: string | null;
  readonly logger: Logger;
}

const fromJson = ({ payloads }: z.infer<typeof body>): Payload[] => payloads.map(
  ({ metadata, data }) => ({
    metadata: Object.fromEntries(
      Object.entries(metadata).map(([name, value]) => [name, Buffer.from(value, 'base64')]),
    ),
    data: Buffer.from(data, 'base64'),
  }),
);
const toJson = (payloads: readonly Payload[]): string => JSON.stringify({
  payloads: payloads.map(({ metadata, data }) => ({
    metadata: Object.fromEntries(Object.entries(metadata ?? {}).map(
      ([name, value]) => [name, Buffer.from(value ?? []).toString('base64')],
    )),
    data: Buffer.from(data ?? []).toString('base64'),
  })),
});

async function readBody(request: IncomingMessage): Promise<string | null> {
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    length += part.length;
    if (length > bodyBytesMax) return null;
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}

/** A payload that can't be read is shown as such; the rest of the page stays readable. */
async function decodeEach(codec: PayloadCodec, payloads: Payload[]): Promise<Payload[]> {
  return Promise.all(payloads.map(async (payload) => {
    try {
      const [decoded] = await codec.decode([payload]);
      return decoded ?? payload;
    } catch (error) {
      return defaultPayloadConverter.toPayload(`not readable: ${(error as Error).message}`);
    }
  }));
}

function allowOrigin(
  request: IncomingMessage,
  response: ServerResponse,
  origins: readonly string[],
): void {
  const { origin } = request.headers;
  if (origin === undefined || !origins.includes(origin)) return;
  response.setHeader('access-control-allow-origin', origin);
  response.setHeader('access-control-allow-headers', 'content-type,x-namespace,authorization');
  response.setHeader('access-control-allow-methods', 'POST,OPTIONS');
  response.setHeader('access-control-allow-credentials', 'true');
  response.setHeader('vary', 'origin');
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  { codec, options }: { readonly codec: PayloadCodec | null; readonly options: CodecServerOptions },
): Promise<void> {
  const reply = (status: number, text: string, type = 'text/plain'): void => {
    response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(text);
  };
  const identity = authorizePeer({
    socket: request.socket as TLSSocket, expected: readers, revoked: options.revoked,
  });
  allowOrigin(request, response, options.origins);
  const route = (request.url ?? '').split('?')[0] ?? '';
  const isDecode = route.endsWith('/decode');
  if (request.method === 'OPTIONS') return reply(204, '');
  if (request.method !== 'POST') return reply(405, 'POST only\n');
  if (!isDecode && !route.endsWith('/encode')) return reply(404, '/encode or /decode\n');
  const text = await readBody(request);
  if (text === null) return reply(413, `at most ${bodyBytesMax} bytes\n`);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return reply(400, 'not JSON\n');
  }
  const parsed = body.safeParse(json);
  if (!parsed.success) return reply(400, 'not a list of payloads\n');
  const payloads = fromJson(parsed.data);
  options.logger.info(
    { reader: identityUri(identity), route, payloadCount: payloads.length }, 'payloads read',
  );
  if (codec === null) return reply(200, toJson(payloads), 'application/json');
  const changed = isDecode ? await decodeEach(codec, payloads) : await codec.encode(payloads);
  return reply(200, toJson(changed), 'application/json');
}

/** Listens until closed; a client without a certificate of our authority gets no byte. */
export async function serveCodec(options: CodecServerOptions): Promise<CodecServer> {
  const { listen, payloadKeysPath, logger } = options;
  const codec = payloadKeysPath === null ? null
    : createPayloadCodec(openPayloadKeys(payloadKeysPath));
  const server = createServer(serverTlsOptions(options.tls), (request, response) => {
    answer(request, response, { codec, options }).catch((error: unknown) => {
      logger.warn({ err: error }, 'codec request refused');
      if (!response.headersSent) response.writeHead(403);
      response.end();
    });
  });
  server.maxConnections = connectionCountMax;
  server.requestTimeout = requestTimeoutMs;
  server.headersTimeout = requestTimeoutMs;
  const listening = Promise.withResolvers<void>();
  server.once('error', listening.reject);
  server.listen(listen.port, listen.address, listening.resolve);
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
