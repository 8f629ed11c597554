/** A TCP port for a listener that has to be named before it listens. */
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';

/** A port of this machine's loopback that was free a moment ago; another process may take it. */
export async function freePort(): Promise<number> {
  const probe = createServer();
  const listening = Promise.withResolvers<void>();
  probe.once('error', listening.reject);
  probe.listen(0, '127.0.0.1', listening.resolve);
  await listening.promise;
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  return port;
}
