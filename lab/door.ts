/**
 * A way into (or out of) a namespace: bytes pass between a TCP address on one side and a unix
 * socket on the other, because socket files don't belong to a network namespace. Two doors in a row
 * bring a service of the lab to this machine's loopback. Decides nothing about who may pass: the
 * services behind have their own TLS, the loopback side is this machine's own.
 *
 *   node lab/door.ts '[{"listen":{"path":"…"},"connect":{"address":"127.0.0.1","port":7233}}]'
 */
import { connect, createServer } from 'node:net';
import type { Server } from 'node:net';
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';

const tcpEnd = z.strictObject({ address: z.string(), port: z.int() });
const unixEnd = z.strictObject({ path: z.string() });
const passage = z.strictObject({
  listen: z.union([tcpEnd, unixEnd]), connect: z.union([tcpEnd, unixEnd]),
});
/** From where to where. */
export type Passage = z.infer<typeof passage>;

const endOf = (end: Passage['listen']): { path: string } | { host: string; port: number } =>
  'path' in end ? { path: end.path } : { host: end.address, port: end.port };

/** Opens one passage. */
export async function openDoor({ listen, connect: onwards }: Passage): Promise<Server> {
  if ('path' in listen) rmSync(listen.path, { force: true });
  const server = createServer({ allowHalfOpen: true }, (inner) => {
    const outer = connect({ ...endOf(onwards), allowHalfOpen: true });
    inner.pipe(outer).pipe(inner);
    for (const [one, other] of [[inner, outer], [outer, inner]] as const) {
      one.on('error', () => other.destroy());
      one.on('close', () => other.destroy());
    }
  });
  return await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(endOf(listen), () => resolve(server));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const passages = z.array(passage).min(1).parse(JSON.parse(process.argv[2] ?? '[]'));
  for (const one of passages) await openDoor(one);
  process.stdout.write(`${JSON.stringify({ msg: 'ready', passages: passages.length })}\n`);
}
