/** Certificates on real connections: who gets in, who does not, and with which error. */
import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { connect as connectPlain } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, createServer } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CodedError } from '../../contracts/failures.ts';
import { hostName } from '../../contracts/identity.ts';
import type { Identity } from '../../contracts/identity.ts';
import { createAuthority, issueCertificate, listCertificates, rotateCertificate,
} from '../../payloads/certificates.ts';
import type { IssuedFiles } from '../../payloads/certificates.ts';
import { createJoinToken, enrolHost, serveEnrolment } from '../../payloads/enrolment.ts';
import { encodeFrame } from '../../payloads/json-frames.ts';
import { createRevocationList, openRevocationList, revokeCertificates,
} from '../../payloads/revocation.ts';
import type { RevocationList } from '../../payloads/revocation.ts';
import { authorizePeer, connectTls, endWhenRevoked, followMaterial, peerIdentity,
  secureContextOptions, serverTlsOptions, supportedGroups } from '../../payloads/tls.ts';
import type { ExpectedPeer } from '../../payloads/tls.ts';

let dir: string;
let serverFiles: IssuedFiles;
let revoked: RevocationList;
const open: (() => Promise<void>)[] = [];
const hosts: readonly ExpectedPeer[] = [{ role: 'host' }];

async function issue(identity: Identity, more: { validDays?: number; nowMs?: number } = {}) {
  return issueCertificate({
    dir, identity, addresses: ['127.0.0.1', 'localhost'], nowMs: Date.now(), ...more });
}

/** A server that greets whom it authorizes; answers its port and what it refused. */
async function serve(files: IssuedFiles, expected: readonly ExpectedPeer[], followMs?: number) {
  const refused: unknown[] = [];
  const sockets = new Set<TLSSocket>();
  const server = createServer(serverTlsOptions(files), (socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    try {
      const identity = authorizePeer({ socket, expected, revoked });
      endWhenRevoked({ socket, revoked });
      socket.write(`hello ${identity.role}/${identity.name}`);
    } catch (error) {
      refused.push(error);
      socket.destroy();
    }
  });
  server.on('tlsClientError', (error) => refused.push(error));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  if (followMs !== undefined) followMaterial({ server, material: files, everyMs: followMs });
  open.push(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return { port: (server.address() as AddressInfo).port, refused };
}

/** First bytes from the server, or the error or close that came instead. */
async function greeting(port: number, files: IssuedFiles): Promise<string> {
  const socket = await connectTls({
    host: '127.0.0.1', port, material: files, expected: hosts, revoked });
  return new Promise((resolve, reject) => {
    socket.once('data', (data: Buffer) => { resolve(data.toString()); socket.destroy(); });
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('closed')));
  });
}

/** A client that does not look at its own certificate first: the server has to refuse it. */
function carelessGreeting(port: number, files: IssuedFiles): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port, ...secureContextOptions(files),
    checkServerIdentity: () => undefined });
  return new Promise((resolve, reject) => {
    socket.once('data', (data: Buffer) => { resolve(data.toString()); socket.destroy(); });
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('closed')));
  });
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-cert-'));
  await createAuthority({ dir, nowMs: Date.now() });
  const path = await createRevocationList({ dir, nowMs: Date.now() });
  revoked = openRevocationList({ path, caPath: join(dir, 'ca.pem') });
  serverFiles = await issue({ role: 'host', name: 'h1' });
});
afterAll(async () => {
  for (const close of open) await close();
  await rm(dir, { recursive: true });
});

describe('authority', () => {
  it('is made once, and its keys are for its owner alone', async () => {
    const first = await createAuthority({ dir, nowMs: Date.now() });
    const second = await createAuthority({ dir, nowMs: Date.now() });
    expect(second.fingerprint).toBe(first.fingerprint);
    expect((await stat(join(dir, 'ca-key.pem'))).mode & 0o777).toBe(0o600);
    expect((await stat(serverFiles.keyPath)).mode & 0o777).toBe(0o600);
  });
  it('refuses names that are not role/name, and odd addresses', async () => {
    await expect(issue({ role: 'host', name: 'Böse' })).rejects.toMatchObject(
      { code: 'input/invalid' });
    await expect(issueCertificate({ dir, identity: { role: 'host', name: 'h9' },
      addresses: ['a, URI:novacron://ledger/x'], nowMs: Date.now() }),
    ).rejects.toMatchObject({ code: 'input/invalid' });
  });
});

describe('mutual TLS', () => {
  it('takes a host of the authority, TLS 1.3, and knows its name', async () => {
    const { port } = await serve(serverFiles, hosts);
    const files = await issue({ role: 'host', name: 'h2' });
    expect(await greeting(port, files)).toBe('hello host/h2');
    const socket = await connectTls(
      { host: '127.0.0.1', port, material: files, expected: hosts, revoked });
    expect(socket.getProtocol()).toBe('TLSv1.3');
    expect(peerIdentity(socket)).toEqual({ role: 'host', name: 'h1' });
    socket.destroy();
  });
  it('takes P-256 keys of operators beside Ed25519 ones', async () => {
    const { port } = await serve(serverFiles, [{ role: 'operator' }]);
    expect(await greeting(port, await issue({ role: 'operator', name: 'ada' })))
      .toBe('hello operator/ada');
  });
  it('agrees on the post-quantum group where this Node has it', async (context) => {
    if (!supportedGroups.startsWith('X25519MLKEM768')) {
      context.skip('this Node has no X25519MLKEM768');
    }
    const { port } = await serve(serverFiles, hosts);
    const files = await issue({ role: 'host', name: 'h2' });
    // A client that offers nothing but the hybrid group gets through only if the server has it.
    const socket = connect({ host: '127.0.0.1', port, ...secureContextOptions(files),
      ecdhCurve: 'X25519MLKEM768', checkServerIdentity: () => undefined });
    await new Promise((resolve, reject) => {
      socket.once('data', resolve);
      socket.once('error', reject);
    });
    socket.destroy();
  });
  it('refuses a wrong role on both sides', async () => {
    const { port, refused } = await serve(serverFiles, [{ role: 'host', name: 'h2' }]);
    await expect(greeting(port, await issue({ role: 'host', name: 'h3' }))).rejects.toThrow();
    expect(refused[0]).toMatchObject({ code: 'ownership/role' });
    await expect(connectTls({ host: '127.0.0.1', port, material: serverFiles,
      expected: [{ role: 'ledger' }], revoked })).rejects.toMatchObject({ code: 'ownership/role' });
  });
  it('refuses a certificate of another authority, and one without certificate', async () => {
    const other = await mkdtemp(join(tmpdir(), 'novacron-cert-'));
    await createAuthority({ dir: other, nowMs: Date.now() });
    const foreign = await issueCertificate({ dir: other, identity: { role: 'host', name: 'h2' },
      addresses: [], nowMs: Date.now() });
    const { port, refused } = await serve(serverFiles, hosts);
    await expect(greeting(port, foreign)).rejects.toMatchObject({ code: 'link/refused' });
    const mixed = { ...foreign, caPath: serverFiles.caPath };
    await expect(greeting(port, mixed)).rejects.toThrow();
    const bare = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
    await new Promise((resolve) => { bare.on('error', resolve); bare.on('close', resolve); });
    expect(refused.length).toBe(3);
    await rm(other, { recursive: true });
  });
  it('refuses an expired certificate', async () => {
    const { port, refused } = await serve(serverFiles, hosts);
    const old = await issue({ role: 'host', name: 'h5' },
      { validDays: 1, nowMs: Date.now() - 3 * 86_400_000 });
    await expect(carelessGreeting(port, old)).rejects.toThrow();
    expect(refused.length).toBe(1);
    await expect(greeting(port, old)).rejects.toMatchObject(
      { code: 'certificate/revoked', detail: expect.stringContaining('our own') });
    const oldServer = await serve(old, hosts);
    await expect(greeting(oldServer.port, serverFiles)).rejects.toMatchObject(
      { code: 'certificate/revoked', detail: expect.stringContaining('expired') });
  });
  it('refuses plain text and TLS 1.2', async () => {
    const { port, refused } = await serve(serverFiles, hosts);
    const plain = connectPlain(port, '127.0.0.1');
    plain.write('GET / HTTP/1.1\r\n\r\n');
    const answer = await new Promise<string>((resolve) => {
      let text = '';
      plain.on('data', (data) => { text += data.toString('latin1'); });
      plain.on('close', () => resolve(text));
      plain.on('error', () => resolve(text));
    });
    expect(answer).not.toContain('hello');
    const old = connect({ host: '127.0.0.1', port, maxVersion: 'TLSv1.2', minVersion: 'TLSv1.2',
      rejectUnauthorized: false });
    await expect(new Promise((resolve, reject) => {
      old.once('secureConnect', resolve);
      old.once('error', reject);
    })).rejects.toThrow();
    expect(refused.length).toBe(2);
  });
});

describe('revocation', () => {
  it('takes effect on new and on open connections without a restart', async () => {
    const { port, refused } = await serve(serverFiles, hosts);
    const files = await issue({ role: 'host', name: 'h6' });
    const socket = await connectTls(
      { host: '127.0.0.1', port, material: files, expected: hosts, revoked });
    const closed = new Promise<void>((resolve) => { socket.once('close', () => resolve()); });
    socket.resume();
    const serials = await revokeCertificates({ dir, of: { identity: 'host/h6' }, reason: 'test',
      nowMs: Date.now() });
    expect(serials).toEqual([files.serial]);
    await closed;
    await expect(carelessGreeting(port, files)).rejects.toThrow();
    await expect(greeting(port, files)).rejects.toMatchObject({ code: 'certificate/revoked' });
    expect(refused.at(-1)).toBeInstanceOf(CodedError);
    expect(refused.at(-1)).toMatchObject({ code: 'certificate/revoked' });
  });
  it('keeps the last good list when the file is damaged or not signed by the authority',
    async () => {
    const problems: Error[] = [];
    const path = join(dir, 'revoked.json');
    const good = await readFile(path, 'utf8');
    const list = openRevocationList({ path, caPath: join(dir, 'ca.pem'),
      onProblem: (error) => problems.push(error) });
    const serial = list.entries()[0]?.serial ?? '';
    const { writeFile } = await import('node:fs/promises');
    await writeFile(path, good.replace(/"serials": \[[^\]]*\]/, '"serials": []'));
    expect(list.isRevoked(serial)).toBe(true);
    expect(problems[0]?.message).toMatch(/did not sign/);
    await writeFile(path, '{');
    expect(list.isRevoked(serial)).toBe(true);
    await writeFile(path, good);
    expect(list.isRevoked(serial)).toBe(true);
    expect(() => openRevocationList({ path: '/nonexistent/x', caPath: join(dir, 'ca.pem') }))
      .toThrow(/cert init/);
  });
});

describe('rotation', () => {
  it('gives a running server the new certificate, and the old one stays valid', async () => {
    const before = await issue({ role: 'host', name: 'h7' });
    const { port } = await serve(before, hosts, 20);
    const client = await issue({ role: 'host', name: 'h8' });
    const shown = async (): Promise<string> => {
      const socket = await connectTls(
        { host: '127.0.0.1', port, material: client, expected: hosts, revoked });
      const serial = socket.getPeerX509Certificate()?.serialNumber.toLowerCase() ?? 'none';
      socket.destroy();
      return serial;
    };
    const oldCertPem = await readFile(before.certPath, 'utf8');
    const after = await rotateCertificate({ dir, identity: before.identity, nowMs: Date.now() });
    expect(after.serial).not.toBe(before.serial);
    expect(after.addresses).toEqual(before.addresses);
    expect(oldCertPem).not.toBe(await readFile(after.certPath, 'utf8'));
    await expect.poll(shown, { timeout: 5_000 }).toBe(after.serial);
    expect((await listCertificates(dir)).filter(({ identity }) => identity.name === 'h7').length)
      .toBe(2);
    expect(revoked.isRevoked(before.serial)).toBe(false);
  });
});

/** Says what a stranger says; answers all that came back until the end, or for two seconds. */
function knock(socket: Socket, bytes: Buffer): Promise<string> {
  const chunks: Buffer[] = [];
  const secured = 'encrypted' in socket;
  return new Promise((resolve) => {
    const finish = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(Buffer.concat(chunks).toString('latin1'));
    };
    const timer = setTimeout(finish, 2_000);
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.once('error', finish).once('close', finish);
    socket.once(secured ? 'secureConnect' : 'connect', () => socket.write(bytes));
  });
}

describe('joining with a token', () => {
  const endpoint = async () => {
    const material = await issue({ role: 'control', name: 'enrolment' });
    const server = await serveEnrolment(
      { dir, address: '127.0.0.1', port: 0, material, now: () => Date.now() });
    open.push(server.close);
    return { address: '127.0.0.1', port: server.port };
  };
  const newToken = async (at: { address: string; port: number }, name: string,
    nowMs = Date.now()) =>
    (await createJoinToken({ dir, host: hostName(name), addresses: ['198.18.2.14'],
      endpoint: at, nowMs, validMs: 60_000 })).token;

  it('gives a certificate once, for the host and the addresses in the token', async () => {
    const at = await endpoint();
    const token = await newToken(at, 'h14');
    const outDir = join(dir, 'joined');
    const files = await enrolHost({ token, outDir });
    expect(files.identity).toEqual({ role: 'host', name: 'h14' });
    expect(files.addresses).toEqual(['198.18.2.14']);
    expect((await stat(files.keyPath)).mode & 0o777).toBe(0o600);
    const { port } = await serve(serverFiles, hosts);
    expect(await greeting(port, files)).toBe('hello host/h14');
    openRevocationList({ path: files.revokedPath, caPath: files.caPath });
    await expect(enrolHost({ token, outDir })).rejects.toMatchObject(
      { code: 'link/refused', detail: expect.stringContaining('used') });
  });
  it('refuses an expired token, a wrong secret and a foreign endpoint', async () => {
    const at = await endpoint();
    const expired = await newToken(at, 'h15', Date.now() - 120_000);
    await expect(enrolHost({ token: expired, outDir: dir })).rejects.toThrow(/expired/);
    const token = await newToken(at, 'h16');
    const [prefix, body = ''] = token.split(/(?<=v1\.)/);
    const fields = JSON.parse(Buffer.from(body, 'base64url').toString()) as object;
    const changed = (more: object) =>
      `${prefix}${Buffer.from(JSON.stringify({ ...fields, ...more })).toString('base64url')}`;
    await expect(enrolHost({ token: changed({ secret: 'A'.repeat(43) }), outDir: dir }))
      .rejects.toMatchObject({ code: 'link/refused' });
    await expect(enrolHost({ token: changed({ fingerprint: '0'.repeat(64) }), outDir: dir }))
      .rejects.toThrow(/authority/);
    await expect(enrolHost({ token: 'nonsense', outDir: dir })).rejects.toThrow(/damaged/);
    const files = await enrolHost({ token, outDir: join(dir, 'joined') });
    expect(files.identity.name).toBe('h16');
  });
  it('goes on through garbage, and uses no token up for it', async () => {
    const at = await endpoint();
    const token = await newToken(at, 'h18');
    const { id } = JSON.parse(Buffer.from(
      token.slice('novacron-join-v1.'.length), 'base64url').toString()) as { id: string };
    const asked = (more: object): Buffer => encodeFrame({
      version: 1, kind: 'enrol', id, secret: 'A'.repeat(43), requestPem: 'nonsense', ...more });
    const header = Buffer.alloc(4);
    header.writeUInt32BE(0xffff_ffff);
    const plain = [randomBytes(4_096), Buffer.from('GET / HTTP/1.1\r\n\r\n'), Buffer.alloc(0)];
    const secured = [
      randomBytes(512), header, Buffer.concat([Buffer.from([0, 0, 0, 2]), Buffer.from('{]')]),
      asked({}), asked({ version: 2 }), asked({ id: '../../ca-key' }), asked({ secret: '' }),
      asked({ requestPem: '-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n' }), encodeFrame(null),
    ];
    const answers = await Promise.all([
      ...plain.map((bytes) => knock(connectPlain(at.port, at.address), bytes)),
      ...secured.map((bytes) => knock(connect({
        host: at.address, port: at.port, rejectUnauthorized: false }), bytes)),
    ]);
    for (const answer of answers) expect(answer).not.toContain('BEGIN');
    expect(answers.slice(plain.length).filter((answer) => answer.includes('input/invalid')).length,
      'requests that can be read are told what is wrong').toBeGreaterThanOrEqual(4);
    const files = await enrolHost({ token, outDir: join(dir, 'joined') });
    expect(files.identity.name).toBe('h18');
  });
  it('names an endpoint that answers garbage, and writes nothing', async () => {
    const material = await issue({ role: 'control', name: 'odd' });
    const options = secureContextOptions(material);
    const caPem = await readFile(join(dir, 'ca.pem'), 'utf8');
    for (const said of [randomBytes(64), encodeFrame({ version: 9 }), Buffer.from([0, 0, 0, 1, 0x7b])]) {
      const server = createServer({ ...options, cert: `${String(options.cert)}${caPem}` }, (socket) => {
        socket.on('error', () => socket.destroy());
        socket.once('data', () => socket.end(said));
      });
      await new Promise<void>((resolve) => { server.listen(0, '127.0.0.1', resolve); });
      open.push(() => new Promise((resolve) => { server.close(() => resolve()); }));
      const { port } = server.address() as AddressInfo;
      const token = await newToken({ address: '127.0.0.1', port }, 'h19');
      const outDir = join(dir, 'odd');
      await expect(enrolHost({ token, outDir })).rejects.toMatchObject({ code: 'link/refused' });
      await expect(stat(outDir)).rejects.toThrow(/ENOENT/);
    }
  });
  it('is not served by a host that passes for the endpoint', async () => {
    const server = await serveEnrolment(
      { dir, address: '127.0.0.1', port: 0, material: serverFiles, now: () => Date.now() });
    open.push(server.close);
    const token = await newToken({ address: '127.0.0.1', port: server.port }, 'h17');
    await expect(enrolHost({ token, outDir: dir })).rejects.toMatchObject(
      { code: 'ownership/role' });
  });
});
