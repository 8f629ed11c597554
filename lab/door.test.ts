import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer as createSecuredServer } from 'node:tls';
import { afterEach, describe, expect, it } from 'vitest';
import { createAuthority, issueCertificate } from '../payloads/certificates.ts';
import type { TlsMaterial } from '../payloads/certificates.ts';
import { createRevocationList } from '../payloads/revocation.ts';
import { peerIdentity, serverTlsOptions } from '../payloads/tls.ts';
import { openDoor } from './door.ts';

const open: Server[] = [];
const directory = mkdtempSync(join(tmpdir(), 'nc-door-'));
afterEach(() => {
  for (const server of open.splice(0)) server.close();
  rmSync(directory, { recursive: true, force: true });
});

describe('a door', () => {
  it('passes bytes both ways over a unix socket and keeps half-closed ends', async () => {
    const echo = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
    await new Promise<void>((resolve) => echo.listen(0, '127.0.0.1', resolve));
    const path = join(directory, 'd.sock');
    const port = (echo.address() as AddressInfo).port;
    const inside = await openDoor({ listen: { path }, connect: { address: '127.0.0.1', port } });
    const outside = await openDoor({
      listen: { address: '127.0.0.1', port: 0 }, connect: { path } });
    open.push(echo, inside, outside);
    const sent = Buffer.alloc(3_000_000, 7);
    const client = connect((outside.address() as AddressInfo).port, '127.0.0.1');
    client.end(sent);
    let received = 0;
    for await (const chunk of client) received += (chunk as Buffer).length;
    expect(received).toBe(sent.length);
  });

  it('hangs up when nobody is behind it', async () => {
    const outside = await openDoor({
      listen: { address: '127.0.0.1', port: 0 }, connect: { path: join(directory, 'nobody') } });
    open.push(outside);
    const client = connect((outside.address() as AddressInfo).port, '127.0.0.1');
    client.on('error', () => undefined);
    await new Promise((resolve) => client.once('close', resolve));
  });

  it('with papers is a client of a control worker, and of nobody else', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'nc-papers-'));
    const nowMs = Date.now();
    await createAuthority({ dir, nowMs });
    await createRevocationList({ dir, nowMs });
    const caPath = join(dir, 'ca.pem');
    const issue = async (role: 'control' | 'host' | 'operator'): Promise<TlsMaterial> => ({
      ...await issueCertificate({ dir, identity: { role, name: 'one' }, addresses: [], nowMs }),
      caPath,
    });
    const { certPath, keyPath } = await issue('operator');
    const papers = { tls: { certPath, keyPath, caPath }, revokedPath: join(dir, 'revoked.json') };
    const told = async (role: 'control' | 'host'): Promise<string> => {
      const service = createSecuredServer(serverTlsOptions(await issue(role)), (socket) => {
        socket.on('error', () => undefined).end(`to ${String(peerIdentity(socket)?.role)}`);
      });
      await new Promise<void>((resolve) => service.listen(0, '127.0.0.1', resolve));
      const { port } = service.address() as AddressInfo;
      const door = await openDoor({
        listen: { address: '127.0.0.1', port: 0 }, connect: { address: '127.0.0.1', port }, papers,
      });
      open.push(service, door);
      const client = connect((door.address() as AddressInfo).port, '127.0.0.1');
      client.on('error', () => undefined);
      let text = '';
      client.on('data', (part: Buffer) => { text += part.toString(); });
      await new Promise((resolve) => client.once('close', resolve));
      return text;
    };
    expect(await told('control')).toBe('to operator');
    expect(await told('host')).toBe('');
    rmSync(dir, { recursive: true });
  });
});
