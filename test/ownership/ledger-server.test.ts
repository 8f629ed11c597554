/** The ledger's server against bad peers, revoked ones, slow ones, and its own restarts. */
import { connect as connectTcp } from 'node:net';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { FrameDecoder, encodeFrame } from '../../payloads/json-frames.ts';
import { createRevocationList, openRevocationList, revokeCertificates } from '../../payloads/revocation.ts';
import { secureContextOptions } from '../../payloads/tls.ts';
import type { Identity } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { connectLedger, openLedger } from '../../payloads/ledger-client.ts';
import { asHost, control, hostA, hostB, must, runningVm, servedLedger, vm } from '../support/ledger-fixtures.ts';
import type { ServedLedger } from '../support/ledger-fixtures.ts';
import { randomFrom } from './crash-trials.ts';

// Room for a machine that is busy with other tests; nothing here waits that long by itself.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const codec: Identity = { role: 'codec', name: 'codec' };
const doomed: Identity = { role: 'lab', name: 'doomed' };
let ledger: ServedLedger;
beforeAll(async () => {
  ledger = await servedLedger([control, asHost(hostA), asHost(hostB), codec, doomed]);
  await runningVm(ledger);
});
afterAll(() => ledger.close());

const closed = (socket: { once(event: 'close', listener: () => void): unknown; destroyed: boolean }) =>
  socket.destroyed ? Promise.resolve() : new Promise<void>((resolve) => socket.once('close', () => resolve()));

async function rawTls(identity: Identity): Promise<TLSSocket> {
  const socket = connect({
    host: '127.0.0.1', port: ledger.server.port, ...secureContextOptions(ledger.files(identity)),
    checkServerIdentity: () => undefined,
  });
  socket.on('error', () => {});
  await new Promise<void>((resolve, reject) => {
    socket.once('secureConnect', resolve);
    socket.once('error', reject);
  });
  return socket;
}
const alive = async () => expect((await ledger.as(control).readVm(vm))?.owner).toBe(hostA);

describe('the server', () => {
  test('speaks TLS 1.3 with a hybrid group and its own identity', async () => {
    const socket = await rawTls(control);
    expect(socket.getProtocol()).toBe('TLSv1.3');
    expect(socket.getPeerCertificate().subjectaltname).toContain('novacron://ledger/ledger');
    socket.destroy();
  });

  test('plain text, old TLS, no certificate and foreign certificates get nothing', async () => {
    const plain = connectTcp(ledger.server.port, '127.0.0.1');
    plain.on('error', () => {});
    plain.write(encodeFrame({ version: 1, id: 1, op: 'list-vms' }));
    await closed(plain);
    const { ca, cert, key } = secureContextOptions(ledger.files(control));
    const foreignDir = join(ledger.dir, 'foreign');
    await createAuthority({ dir: foreignDir, nowMs: Date.now() });
    const foreign = await issueCertificate({
      dir: foreignDir, identity: control, addresses: [], nowMs: Date.now(),
    });
    const attempts = [
      { ca, cert, key, maxVersion: 'TLSv1.2' as const }, { ca },
      { ca, cert: readFileSync(foreign.certPath), key: readFileSync(foreign.keyPath) },
    ];
    for (const attempt of attempts) {
      const socket = connect({
        host: '127.0.0.1', port: ledger.server.port, checkServerIdentity: () => undefined, ...attempt,
      });
      let heard = 0;
      socket.on('error', () => {});
      socket.on('data', (chunk) => { heard += chunk.length; });
      socket.once('secureConnect', () =>
        socket.write(encodeFrame({ version: 1, id: 1, op: 'list-vms' })));
      await closed(socket);
      expect(heard).toBe(0);
    }
    await alive();
  });

  test('a role that has no business here is refused', async () => {
    const client = connectLedger({
      address: '127.0.0.1', port: ledger.server.port, tls: ledger.files(codec),
      revoked: ledger.revoked, requestTimeoutMs: 400,
    });
    await expect(client.listVms()).rejects.toMatchObject({ code: 'ownership/unreachable' });
    await client.close();
  });

  const seed = Number(process.env['NOVACRON_SEED'] ?? Date.now() % 1_000_000);
  test(`garbage ends its own connection only (NOVACRON_SEED=${seed})`, async () => {
    const random = randomFrom(seed);
    const noise = (size: number) => Buffer.from(Array.from({ length: size }, () => random(256)));
    const long = Buffer.alloc(4);
    long.writeUInt32BE(0xffff_ffff);
    const json = (value: unknown) => encodeFrame(value);
    const rude: Buffer[] = [
      noise(3_000), long, Buffer.concat([Buffer.from([0, 0, 0, 9]), noise(9)]),
      json(null), json([]), json({ version: 2, id: 1, op: 'list-vms' }),
      json({ version: 1, id: -1, op: 'list-vms' }), json({ version: 1, id: 1, op: 'explode' }),
      json({ version: 1, id: 1, op: 'read-vm', vm: 'x'.repeat(5_000) }),
      json({ version: 1, id: 1, op: 'read-vm', vm: { $gt: '' } }),
    ];
    for (const bytes of rude) {
      const socket = await rawTls(asHost(hostB));
      socket.write(bytes);
      await closed(socket);
    }
    await alive();
  });

  test('bad events are an answer, not the end of the connection', async () => {
    const socket = await rawTls(control);
    const decoder = new FrameDecoder();
    const answers: unknown[] = [];
    const done = new Promise<void>((resolve) => socket.on('data', (chunk) => {
      answers.push(...decoder.push(chunk));
      if (answers.length === 5) resolve();
    }));
    const events = [
      'nonsense', [], [{ kind: 'steal', vm }], [{ kind: 'renew', vm: '../etc', epoch: 1 }],
      [{ kind: 'renew', vm, epoch: 1, extra: true }],
    ];
    for (const [id, one] of events.entries()) {
      socket.write(encodeFrame({ version: 1, id, op: 'propose', events: one }));
    }
    await done;
    expect(answers).toEqual(events.map((_, id) => expect.objectContaining({
      id, error: expect.objectContaining({ code: 'input/invalid' }),
    })));
    socket.destroy();
    expect(await ledger.as(control).readVm('__proto__' as never)).toBeNull();
    await alive();
  });

  test('a frame above the limit is refused at the client already', async () => {
    await expect(ledger.as(control).propose([{
      kind: 'abort', vm, migration: 'migrate/vm-1/x' as never, epoch: 1, reason: 'x'.repeat(300_000),
    }])).rejects.toMatchObject({ code: 'input/invalid' });
    await alive();
  });

  test('a peer that asks and never reads does not disturb others', async () => {
    const socket = await rawTls(asHost(hostB));
    socket.pause();
    for (let id = 0; id < 20_000 && !socket.destroyed; id += 1) {
      socket.write(encodeFrame({ version: 1, id, op: 'list-vms' }));
    }
    const startedMs = performance.now();
    await alive();
    expect(performance.now() - startedMs).toBeLessThan(5_000);
    socket.destroy();
  });

  test('a revoked certificate loses its connection and gets no other', async () => {
    const client = ledger.as(doomed);
    await client.listVms();
    const before = ledger.server.connectionCount();
    await revokeCertificates({
      dir: join(ledger.dir, 'ca'), of: { identity: 'lab/doomed' }, reason: 'test', nowMs: Date.now(),
    });
    await expect.poll(() => ledger.server.connectionCount(), { timeout: 20_000 }).toBeLessThan(before);
    const again = connectLedger({
      address: '127.0.0.1', port: ledger.server.port, tls: ledger.files(doomed),
      revoked: ledger.revoked, requestTimeoutMs: 400,
    });
    await expect(again.listVms()).rejects.toMatchObject({ code: 'ownership/unreachable' });
    await again.close();
  });
});

describe('the client', () => {
  test('a wrong server is refused: not a ledger, or another name', async () => {
    const path = await createRevocationList({ dir: join(ledger.dir, 'ca'), nowMs: Date.now() });
    const revoked = openRevocationList({ path, caPath: ledger.files(control).caPath });
    const client = connectLedger({
      address: '127.0.0.1', port: ledger.server.port, tls: ledger.files(control), revoked,
      ledgerName: 'other', requestTimeoutMs: 300,
    });
    await expect(client.listVms()).rejects.toMatchObject({ code: 'ownership/unreachable' });
    await client.close();
    await expect(client.listVms()).rejects.toMatchObject({ code: 'ownership/unreachable' });
  });

  test('a short-lived one fails at once, with the reason, and stays ended', async () => {
    const to = (identity: Identity, port = ledger.server.port) => openLedger({
      address: '127.0.0.1', port, tls: ledger.files(identity), revoked: ledger.revoked,
    });
    await expect(to(control, 1)).rejects.toMatchObject({ code: 'ownership/unreachable' });
    const refused = await to(codec);
    const otherRole = { code: 'ownership/unreachable', detail: expect.stringMatching(/of another role/) };
    await expect(refused.listVms()).rejects.toMatchObject(otherRole);
    await expect(refused.listVms()).rejects.toMatchObject(otherRole);
    const cut = await to(control);
    expect((await cut.readVm(vm))?.owner).toBe(hostA);
    await ledger.restart();
    await expect(cut.readVm(vm)).rejects.toMatchObject({ code: 'ownership/unreachable' });
    await cut.close();
  });

  test('a restarted ledger: reads go on, watches go on with the present entry', async () => {
    const stop = new AbortController();
    const seen: (VmEntry | null)[] = [];
    const watching = (async () => {
      for await (const entry of ledger.as(asHost(hostB)).watchVm(vm, stop.signal)) seen.push(entry);
    })();
    await expect.poll(() => seen.length, { timeout: 20_000 }).toBe(1);
    await ledger.stop();
    const reading = ledger.as(asHost(hostB)).readVm(vm);
    await ledger.restart();
    expect((await reading)?.owner).toBe(hostA);
    await must(ledger.as(control).propose([{ kind: 'desire', vm, epoch: 1, desired: 'stopped' }]));
    await expect.poll(() => seen.at(-1)?.desired, { timeout: 20_000 }).toBe('stopped');
    expect(seen.filter((entry) => entry?.desired === 'running')).toHaveLength(1);
    stop.abort();
    await watching;
  });

  test('a silent ledger is reported in time', async () => {
    await ledger.stop();
    const startedMs = performance.now();
    await expect(ledger.as(control).propose([{ kind: 'renew', vm, epoch: 1 }]))
      .rejects.toMatchObject({ code: 'ownership/unreachable' });
    expect(performance.now() - startedMs).toBeLessThan(10_000);
    await ledger.restart();
    await must(ledger.as(asHost(hostA)).propose([{ kind: 'renew', vm, epoch: 1 }]));
  });
});
