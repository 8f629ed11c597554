/**
 * Mutual TLS in front of a development server: certificates are checked here, bytes go on to the
 * loopback address, so that nothing plain leaves the machine's loopback. gRPC needs ALPN h2.
 * Decides who may connect; what they may do then is the same for all (a development server knows
 * no roles). A production frontend has its own TLS and needs no front.
 */
import { connect } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { createServer } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import { identityUri } from '../../contracts/identity.ts';
import type { TlsMaterial } from '../../payloads/certificates.ts';
import type { RevocationList } from '../../payloads/revocation.ts';
import {
  authorizePeer, endWhenRevoked, followMaterial, serverTlsOptions,
} from '../../payloads/tls.ts';
import type { ExpectedPeer } from '../../payloads/tls.ts';

/** Hosts, control workers, people and the codec; ledger and lab have no business with Temporal. */
const expected: readonly ExpectedPeer[] = [
  { role: 'host' }, { role: 'control' }, { role: 'operator' }, { role: 'codec' },
];
/** A worker keeps two or three connections; a lab of thirty hosts stays far below. */
const connectionCountMax = 256;

export interface TlsFrontOptions {
  readonly listen: { readonly address: string; readonly port: number };
  /** The server behind, on loopback. */
  readonly behind: { readonly address: string; readonly port: number };
  readonly tls: TlsMaterial;
  readonly revoked: RevocationList;
  readonly logger: Logger;
}
export interface TlsFront {
  readonly port: number;
  close(): Promise<void>;
}

function join(outer: TLSSocket, behind: TlsFrontOptions['behind']): Socket {
  const inner = connect({ host: behind.address, port: behind.port });
  inner.setNoDelay(true);
  const end = (): void => {
    inner.destroy();
    outer.destroy();
  };
  inner.on('error', end);
  outer.on('error', end);
  inner.on('close', end);
  outer.on('close', end);
  outer.pipe(inner).pipe(outer);
  return inner;
}

/** Listens until closed. */
export async function serveTlsFront(options: TlsFrontOptions): Promise<TlsFront> {
  const { listen, behind, tls, revoked, logger } = options;
  const sockets = new Set<TLSSocket>();
  const server = createServer({ ...serverTlsOptions(tls), ALPNProtocols: ['h2'] }, (socket) => {
    try {
      const identity = authorizePeer({ socket, expected, revoked });
      sockets.add(socket);
      socket.setNoDelay(true);
      socket.on('close', () => sockets.delete(socket));
      endWhenRevoked({ socket, revoked });
      join(socket, behind);
      logger.debug({ peer: identityUri(identity) }, 'connected to Temporal');
    } catch (error) {
      logger.warn({ err: error }, 'connection to Temporal refused');
      socket.destroy();
    }
  });
  server.on('tlsClientError', (error: Error) => {
    logger.warn({ reason: error.message }, 'handshake refused');
  });
  server.maxConnections = connectionCountMax;
  const stopFollowing = followMaterial({ server, material: tls });
  const listening = Promise.withResolvers<void>();
  server.once('error', listening.reject);
  server.listen(listen.port, listen.address, listening.resolve);
  await listening.promise;
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      stopFollowing();
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}
