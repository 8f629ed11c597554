/**
 * The ledger on the network: mutual TLS 1.3, one identity a connection, framed JSON, pipelined.
 * Decides who may connect and how much one connection may hold; answers come from core.ts.
 */
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import type { RevocationList } from '../../payloads/revocation.ts';
import {
  authorizePeer, endWhenRevoked, followMaterial, serverTlsOptions,
} from '../../payloads/tls.ts';
import type { ExpectedPeer, TlsMaterial } from '../../payloads/tls.ts';
import { LedgerPeer } from './peer.ts';
import type { LedgerCore } from './core.ts';

/** Hosts and workers keep one connection each; the rest is room for tools and reconnects. */
const connectionCountMax = 1_024;
const keepAliveAfterMs = 10_000;

/** Who may connect at all; what each may propose is in the table of group/ownership. */
const clients: readonly ExpectedPeer[] = [
  { role: 'control' }, { role: 'host' }, { role: 'operator' }, { role: 'ledger' }, { role: 'lab' },
];

export interface LedgerServer {
  readonly address: string;
  readonly port: number;
  connectionCount(): number;
  close(): Promise<void>;
}

export interface LedgerServerOptions {
  readonly core: LedgerCore;
  readonly address: string;
  readonly port: number;
  readonly tls: TlsMaterial;
  readonly revoked: RevocationList;
  readonly logger: Logger;
}

/** Listens and serves until closed. Throws what `listen` throws; `input/invalid` for TLS files. */
export async function serveLedger(options: LedgerServerOptions): Promise<LedgerServer> {
  const { core, tls, revoked, logger } = options;
  const sockets = new Set<TLSSocket>();
  const server = createServer(serverTlsOptions(tls), (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    accept({ socket, core, revoked, logger });
  });
  server.maxConnections = connectionCountMax;
  server.on('tlsClientError', (error, socket) => {
    logger.warn({ peer: socket.remoteAddress, reason: error.message }, 'connection refused');
    socket.destroy();
  });
  const stopFollowing = followMaterial({
    server, material: tls,
    onRotated: (serial) => logger.info({ serial }, 'certificate rotated'),
  });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  server.listen(options.port, options.address, resolve);
  await promise;
  const { address, port } = server.address() as AddressInfo;
  return {
    address, port,
    connectionCount: () => sockets.size,
    close: async () => {
      stopFollowing();
      const closed = new Promise<void>((done) => server.close(() => done()));
      for (const socket of sockets) socket.destroySoon();
      await closed;
    },
  };
}

function accept({ socket, core, revoked, logger }: {
  readonly socket: TLSSocket; readonly core: LedgerCore; readonly revoked: RevocationList;
  readonly logger: Logger;
}): void {
  socket.on('error', (error) => logger.debug({ reason: error.message }, 'connection broke'));
  try {
    const identity = authorizePeer({ socket, expected: clients, revoked });
    endWhenRevoked({ socket, revoked });
    socket.setNoDelay(true);
    socket.setKeepAlive(true, keepAliveAfterMs);
    new LedgerPeer({ socket, core, identity, logger }).serve();
  } catch (error) {
    const reason = (error as Error).message;
    logger.warn({ peer: socket.remoteAddress, reason }, 'connection refused');
    socket.destroy();
  }
}
