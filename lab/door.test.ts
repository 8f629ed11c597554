import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
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
});
