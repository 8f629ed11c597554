/** A unix socket that only its owner may open: listening, a bound on connections, and the end. */
import { rm } from 'node:fs/promises';
import type { Server, Socket } from 'node:net';

/**
 * Listens with mode 0600; a stale socket is replaced. `close` ends every connection. Failures: those
 * of listen.
 */
export async function listenPrivately(
  server: Server,
  { socketPath, connectionCountMax }:
    { readonly socketPath: string; readonly connectionCountMax: number },
): Promise<{ close(): Promise<void> }> {
  await rm(socketPath, { force: true });
  const open = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
  });
  server.maxConnections = connectionCountMax;
  const listening = Promise.withResolvers<void>();
  server.once('error', listening.reject);
  // The socket must never be open to others, not even for a moment after listen.
  const umask = process.umask(0o177);
  try {
    server.listen(socketPath, listening.resolve);
    await listening.promise;
  } finally {
    process.umask(umask);
  }
  return {
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of open) socket.destroy();
      await closed;
    },
  };
}
