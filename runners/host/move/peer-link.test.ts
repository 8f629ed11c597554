import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect as connectPlain } from 'node:net';
import { createServer } from 'node:tls';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { hostName, migrationId, requestId, vmName } from '../../../contracts/identity.ts';
import { createAuthority, issueCertificate } from '../../../payloads/certificates.ts';
import { encodeFrame, FrameDecoder } from '../../../payloads/json-frames.ts';
import { connectTls, serverTlsOptions } from '../../../payloads/tls.ts';
import {
  createRevocationList, openRevocationList, revokeCertificates,
} from '../../../payloads/revocation.ts';
import { openPeerLink, servePeerLinks, type PeerLink, type PeerTls } from './peer-link.ts';
import type { PeerMessage } from './peer-messages.ts';

const log = pino({ level: 'silent' });
const migration = migrationId(vmName('web'), requestId('r1'));
const hello = { version: 1, kind: 'hello', migration, epoch: 1 } as const;
let dir = '';
let server: Awaited<ReturnType<typeof servePeerLinks>>;
const links: PeerLink[] = [];

async function tlsOf(role: 'host' | 'operator', name: string): Promise<PeerTls> {
  const material = await issueCertificate({
    dir, identity: { role, name }, addresses: ['127.0.0.1'], nowMs: Date.now(),
    outDir: join(dir, `${role}-${name}`),
  });
  const revoked = openRevocationList({
    path: join(dir, 'revoked.json'), caPath: material.caPath,
  });
  return { material, revoked };
}

const target = (host = 'h2') => ({
  address: '127.0.0.1', port: server.port, host: hostName(host),
});

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-peer-'));
  await createAuthority({ dir, nowMs: Date.now() });
  await createRevocationList({ dir, nowMs: Date.now() });
  server = await servePeerLinks({
    address: '127.0.0.1', port: 0, tls: await tlsOf('host', 'h2'), log,
    greet: (words, from) => {
      if (from !== 'h1' && from !== 'h3') {
        return { code: 'link/refused', detail: `${from} is not the source` };
      }
      if (words.migration !== migration) return { code: 'link/lost', detail: 'no such move' };
      return (link) => {
        links.push(link);
        link.send({ version: 1, kind: 'gave-up', code: 'disk/full', detail: 'said at once' });
      };
    },
  });
});

afterAll(async () => {
  await server.close();
  await rm(dir, { recursive: true, force: true });
});

describe('the peer link', () => {
  test('welcomes the named source, compares clocks, loses no early message', async () => {
    const link = await openPeerLink(target(), await tlsOf('host', 'h1'), hello);
    const { offsetMs, errorMs } = await link.compareClocks();
    expect(Math.abs(offsetMs)).toBeLessThanOrEqual(errorMs + 1);
    const first = Promise.withResolvers<PeerMessage>();
    link.listen(first.resolve);
    expect(await first.promise).toMatchObject({ kind: 'gave-up', detail: 'said at once' });
    link.close();
    await links.at(-1)?.gone;
  });

  test.each([
    ['another host than expected', 'h9', 'h1', 'ownership/role'],
    ['a host that is not the source', 'h2', 'h8', 'link/refused'],
  ])('refuses %s', async (_what, expected, own, code) => {
    const opening = openPeerLink(target(expected), await tlsOf('host', own), hello);
    await expect(opening).rejects.toMatchObject({ code });
  });

  test('tells a runner that forgot the move from one that refuses it', async () => {
    const other = { ...hello, migration: 'migrate/other/r1' as typeof hello.migration };
    await expect(openPeerLink(target(), await tlsOf('host', 'h1'), other)).rejects.toMatchObject({
      code: 'link/lost', detail: expect.stringContaining('no such move') as string });
  });

  test('refuses a certificate of another role', async () => {
    const opening = openPeerLink(target(), await tlsOf('operator', 'ann'), hello);
    await expect(opening).rejects.toMatchObject({ code: 'link/refused' });
  });

  test('refuses a revoked source, and ends its open link', async () => {
    const tls = await tlsOf('host', 'h3');
    const link = await openPeerLink(target(), tls, hello);
    await revokeCertificates({
      dir, of: { identity: 'host/h3' }, reason: 'stolen', nowMs: Date.now(),
    });
    expect(await link.gone).toBeInstanceOf(Error);
    // The server's alert or its close comes first: both say no.
    await expect(openPeerLink(target(), tls, hello)).rejects.toMatchObject({
      code: expect.stringMatching(/^(link\/refused|certificate\/revoked)$/) as string,
    });
  });

  const drained: PeerMessage = {
    version: 1, kind: 'disks-drained', diskDigests: ['a'.repeat(32)],
  };

  test('says to a runner of its own version what it knows', async () => {
    const link = await openPeerLink(target(), await tlsOf('host', 'h1'), hello);
    const heard = Promise.withResolvers<PeerMessage>();
    links.at(-1)?.listen(heard.resolve);
    link.send(drained);
    expect(await heard.promise).toEqual(drained);
    link.close();
  });

  test('agrees on less with a target of the first version', async () => {
    const frames: unknown[] = [];
    const told = Promise.withResolvers<void>();
    const { material } = await tlsOf('host', 'h2');
    // As that runner was: it ends a connection on anything that it does not know.
    const old = createServer(serverTlsOptions(material), (socket) => {
      const decoder = new FrameDecoder();
      socket.on('error', () => socket.destroy());
      socket.on('data', (chunk: Buffer) => {
        for (const frame of decoder.push(chunk)) {
          const { kind, ...rest } = frame as { kind: string };
          const known = kind === 'hello' ? ['version', 'migration', 'epoch']
            : kind === 'ping' ? ['version', 'sentMs'] : ['version'];
          if (Object.keys(rest).some((name) => !known.includes(name))) {
            socket.destroy();
            return;
          }
          frames.push(frame);
          if (kind === 'hello') socket.write(encodeFrame({ version: 1, kind: 'welcome' }));
          if (kind === 'disks-drained') told.resolve();
        }
      });
    }).listen(0, '127.0.0.1');
    await once(old, 'listening');
    const { port } = old.address() as { port: number };
    const at = { address: '127.0.0.1', port, host: hostName('h2') };
    const link = await openPeerLink(at, await tlsOf('host', 'h1'), hello);
    link.send(drained);
    await told.promise;
    expect(frames).toContainEqual(hello);
    expect(frames).toContainEqual({ version: 1, kind: 'disks-drained' });
    link.close();
    old.close();
  });

  test('welcomes a source of the first version with nothing that it does not know', async () => {
    const socket = await connectTls({
      host: '127.0.0.1', port: server.port, ...await tlsOf('host', 'h1'),
      expected: [{ role: 'host', name: 'h2' }], timeoutMs: 5_000,
    });
    const decoder = new FrameDecoder();
    const first = Promise.withResolvers<unknown>();
    socket.on('data', (chunk: Buffer) => {
      for (const frame of decoder.push(chunk)) first.resolve(frame);
    });
    socket.write(encodeFrame(hello));
    expect(await first.promise).toEqual({ version: 1, kind: 'welcome' });
    socket.destroy();
  });

  test('plain text and garbage are dropped, others are served on', async () => {
    const socket = connectPlain(server.port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write('GET / HTTP/1.1\r\n\r\n'.repeat(100));
    await once(socket, 'close');
    const link = await openPeerLink(target(), await tlsOf('host', 'h1'), hello);
    link.close();
  });

  test('a message out of the protocol ends the link', async () => {
    const link = await openPeerLink(target(), await tlsOf('host', 'h1'), hello);
    link.send({ version: 1, kind: 'nonsense' } as unknown as PeerMessage);
    expect(await link.gone).toBeInstanceOf(Error);
  });
});
