/**
 * A way into (or out of) a namespace: bytes pass between a TCP address on one side and a unix
 * socket on the other, because socket files don't belong to a network namespace. Two doors in a row
 * bring a service of the lab to this machine's loopback. Decides nothing about who may pass: the
 * services behind have their own TLS, the loopback side is this machine's own. A passage may carry
 * papers: then it is a client of the control worker behind it, for a browser that has none.
 *
 *   node lab/door.ts '[{"listen":{"path":"…"},"connect":{"address":"127.0.0.1","port":7233}}]'
 */
import { connect, createServer } from 'node:net';
import type { Server, Socket } from 'node:net';
import { connect as connectSecured } from 'node:tls';
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { openRevocationList } from '../payloads/revocation.ts';
import { clientTlsOptions } from '../payloads/tls.ts';

const papers = z.strictObject({
  tls: z.strictObject({ certPath: z.string(), keyPath: z.string(), caPath: z.string() }),
  revokedPath: z.string(),
});
const tcpEnd = z.strictObject({ address: z.string(), port: z.int() });
const unixEnd = z.strictObject({ path: z.string() });
const passageShape = z.strictObject({
  listen: z.union([tcpEnd, unixEnd]), connect: z.union([tcpEnd, unixEnd]),
  papers: papers.optional(),
});
/** From where to where. */
export type Passage = z.infer<typeof passageShape>;

const endOf = (end: Passage['listen']): { path: string } | { host: string; port: number } =>
  'path' in end ? { path: end.path } : { host: end.address, port: end.port };

/** How a passage reaches what is behind it. */
function wayOnwards({ connect: onwards, papers: own }: Passage): () => Socket {
  if (own === undefined) return () => connect({ ...endOf(onwards), allowHalfOpen: true });
  const options = clientTlsOptions({
    material: own.tls, expected: [{ role: 'control' }],
    revoked: openRevocationList({ path: own.revokedPath, caPath: own.tls.caPath }),
  });
  return () => connectSecured({ ...endOf(onwards), ...options });
}

/** Opens one passage. */
export async function openDoor(passage: Passage): Promise<Server> {
  const { listen } = passage;
  const reach = wayOnwards(passage);
  if ('path' in listen) rmSync(listen.path, { force: true });
  const server = createServer({ allowHalfOpen: true }, (inner) => {
    const outer = reach();
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
  const passages = z.array(passageShape).min(1).parse(JSON.parse(process.argv[2] ?? '[]'));
  for (const one of passages) await openDoor(one);
  process.stdout.write(`${JSON.stringify({ msg: 'ready', passages: passages.length })}\n`);
}
