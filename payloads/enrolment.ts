/**
 * How a new machine gets its first certificate: a join token made by the operator, used once, and
 * an endpoint that exchanges it for a signed certificate. The token carries the fingerprint of the
 * authority, so the new machine trusts nobody before it has seen that very certificate; its private
 * key never leaves it. What the host does with its certificate is left to its runner.
 *
 * One connection, TLS 1.3, one JSON frame each way:
 *   host → endpoint   {version, kind:'enrol', token id, secret, certificate request}
 *   endpoint → host   {version, certificate, authority} or {version, failure}
 */
import { createHash, randomBytes, timingSafeEqual, webcrypto, X509Certificate } from 'node:crypto';
import { readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { connect, createServer } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import * as x509 from '@peculiar/x509';
import { z } from 'zod';
import { CodedError, failureReport, isFailureCode } from '../contracts/failures.ts';
import { isHostName, hostName } from '../contracts/identity.ts';
import type { HostName } from '../contracts/identity.ts';
import { publicFileMode, secretFileMode, writeFileAtomically } from './atomic-file.ts';
import { describeCertificate, generateKeys, identityFileStem, openAuthority, pemBlock,
  signCertificate, subjectAlternativeNames } from './certificates.ts';
import type { IssuedFiles, TlsMaterial } from './certificates.ts';
import { encodeFrame, FrameDecoder } from './json-frames.ts';
import { createRevocationList } from './revocation.ts';
import { handshakeTimeoutMs, linkFailure, secureContextOptions } from './tls.ts';

/** A token is pasted from one terminal into another; an hour is ample, a day is the most. */
export const joinTokenValidMsDefault = 3600_000;
const joinTokenValidMsMax = 24 * 3600_000;
/** From connecting until the answer; the endpoint does one signature. */
const exchangeTimeoutMs = 15_000;
/** Strangers may connect here: more at a time than this are dropped. */
const connectionCountMax = 16;
/** Certificates of a shown chain that are looked at; ours have two. */
const chainLengthMax = 4;
const tokenPrefix = 'novacron-join-v1.';

const tokenBody = z.strictObject({
  address: z.string().max(253), port: z.int().min(1).max(65_535),
  fingerprint: z.string().regex(/^[0-9a-f]{64}$/),
  host: z.string().refine(isHostName, 'a host name'),
  id: z.string().regex(/^[0-9a-f]{16}$/), secret: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
});
const storedToken = z.strictObject({
  version: z.literal(1), host: z.string().refine(isHostName),
  addresses: z.array(z.string()), secretHash: z.string(), expiresAtMs: z.number(),
});
const enrolRequest = z.strictObject({
  version: z.literal(1), kind: z.literal('enrol'), id: tokenBody.shape.id,
  secret: tokenBody.shape.secret, requestPem: z.string().max(8_192),
});
const enrolAnswer = z.union([
  z.strictObject({ version: z.literal(1), certPem: z.string(), caPem: z.string(),
    revoked: z.string() }),
  z.strictObject({ version: z.literal(1), failure: z.strictObject({
    code: z.string().refine(isFailureCode), detail: z.string() }).loose() }),
]);

const hashOf = (secret: string): Buffer => createHash('sha256').update(secret).digest();

/**
 * Makes a token for one host: `dir/tokens/<id>.json` keeps a hash of its secret, the text is shown
 * once. `addresses` go into the certificate; the host can't choose them.
 */
export async function createJoinToken({ dir, host, addresses, endpoint, nowMs,
  validMs = joinTokenValidMsDefault }: {
  readonly dir: string; readonly host: HostName; readonly addresses: readonly string[];
  readonly endpoint: { readonly address: string; readonly port: number };
  readonly nowMs: number; readonly validMs?: number;
}): Promise<{ readonly token: string; readonly expiresAtMs: number }> {
  if (!(validMs >= 1_000 && validMs <= joinTokenValidMsMax)) {
    throw new CodedError('input/invalid', `validity ${validMs} ms: write 1 s to 24 h`);
  }
  const { fingerprint } = await openAuthority(dir);
  const id = randomBytes(8).toString('hex');
  const secret = randomBytes(32).toString('base64url');
  const expiresAtMs = nowMs + validMs;
  await writeFileAtomically({
    path: join(dir, 'tokens', `${id}.json`), mode: secretFileMode,
    data: JSON.stringify({
      version: 1, host, addresses: [...addresses], expiresAtMs,
      secretHash: hashOf(secret).toString('hex'),
    } satisfies z.input<typeof storedToken>),
  });
  const body = tokenBody.parse({ ...endpoint, fingerprint, host, id, secret });
  const text = Buffer.from(JSON.stringify(body)).toString('base64url');
  return { token: `${tokenPrefix}${text}`, expiresAtMs };
}

/** Reads a token's text; `input/invalid` without showing any of it. */
export function parseJoinToken(token: string): z.infer<typeof tokenBody> {
  try {
    if (!token.startsWith(tokenPrefix)) throw new Error('prefix');
    const text = Buffer.from(token.slice(tokenPrefix.length), 'base64url').toString('utf8');
    return tokenBody.parse(JSON.parse(text));
  } catch {
    throw new CodedError('input/invalid',
      'the join token is damaged; make a new one with `novacron cert join-token`');
  }
}

/** Checks and uses up a token. A wrong secret leaves it as it is; a right one works once. */
async function redeemToken({ dir, id, secret, nowMs }: {
  dir: string; id: string; secret: string; nowMs: number;
}): Promise<z.infer<typeof storedToken>> {
  const refused = (why: string): CodedError => new CodedError('link/refused', `join token ${why}`);
  const path = join(dir, 'tokens', `${id}.json`);
  const text = await readFile(path, 'utf8').catch(() => null);
  if (text === null) throw refused('unknown or used');
  const token = storedToken.parse(JSON.parse(text));
  if (!timingSafeEqual(hashOf(secret), Buffer.from(token.secretHash, 'hex'))) {
    throw refused('unknown or used');
  }
  if (token.expiresAtMs < nowMs) throw refused('expired; make a new one');
  await rename(path, `${path}.used`).catch(() => {
    throw refused('unknown or used');
  });
  return token;
}

async function answerEnrolment(
  { dir, message, nowMs }: { dir: string; message: unknown; nowMs: number },
): Promise<z.input<typeof enrolAnswer>> {
  const parsed = enrolRequest.safeParse(message);
  if (!parsed.success) throw new CodedError('input/invalid', z.prettifyError(parsed.error));
  const request = new x509.Pkcs10CertificateRequest(parsed.data.requestPem);
  if (!await request.verify() || request.publicKey.algorithm.name !== 'Ed25519') {
    throw new CodedError('input/invalid',
      'the certificate request is not signed by an Ed25519 key');
  }
  const { id, secret } = parsed.data;
  const { host, addresses } = await redeemToken({ dir, id, secret, nowMs });
  const { certPem } = await signCertificate({
    dir, identity: { role: 'host', name: host }, addresses, nowMs, publicKey: request.publicKey,
  });
  const { caPem } = await openAuthority(dir);
  const revoked = await readFile(await createRevocationList({ dir, nowMs }), 'utf8');
  return { version: 1, certPem, caPem, revoked };
}

function refusal(error: unknown): z.input<typeof enrolAnswer> {
  const coded = error instanceof CodedError
    ? error : new CodedError('input/invalid', 'the request could not be read');
  return { version: 1, failure: { ...failureReport(coded.code, coded.detail) } };
}

/** Answers one stranger: one frame in, one out, then the end. */
function serveStranger(
  { socket, dir, now, onEnrolled }: { socket: TLSSocket; dir: string; now: () => number;
    onEnrolled: (certPem: string) => void },
): void {
  const decoder = new FrameDecoder();
  let asked = false;
  socket.setTimeout(exchangeTimeoutMs, () => socket.destroy());
  socket.on('error', () => socket.destroy());
  socket.on('data', (chunk: Buffer) => {
    if (asked) return;
    try {
      const [message] = decoder.push(chunk);
      if (message === undefined) return;
      asked = true;
      void answerEnrolment({ dir, message, nowMs: now() }).then((answer) => {
        if ('certPem' in answer) onEnrolled(answer.certPem);
        socket.end(encodeFrame(answer));
      }, (error: unknown) => socket.end(encodeFrame(refusal(error))));
    } catch {
      socket.destroy();
    }
  });
}

/**
 * The endpoint, on the machine that holds the authority. Its own certificate is `material`, of
 * role control; it sends the authority's along, which the host compares with its token.
 */
export async function serveEnrolment({ dir, address, port, material, now, onEnrolled = () => {} }: {
  readonly dir: string; readonly address: string; readonly port: number;
  readonly material: TlsMaterial; readonly now: () => number;
  readonly onEnrolled?: (certPem: string) => void;
}): Promise<{ readonly port: number; readonly close: () => Promise<void> }> {
  const { caPem } = await openAuthority(dir);
  const options = secureContextOptions(material);
  const server = createServer({
    ...options, cert: `${String(options.cert)}${caPem}`, requestCert: false,
    handshakeTimeout: handshakeTimeoutMs,
  }, (socket) => serveStranger({ socket, dir, now, onEnrolled }));
  server.maxConnections = connectionCountMax;
  server.on('tlsClientError', () => {});
  const listening = Promise.withResolvers<void>();
  server.once('error', listening.reject);
  server.listen(port, address, listening.resolve);
  await listening.promise;
  const bound = server.address();
  return {
    port: bound !== null && typeof bound === 'object' ? bound.port : port,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

/** First connection: nothing is sent, only the authority's certificate is taken and compared. */
async function fetchAuthority(
  { address, port, fingerprint }: { address: string; port: number; fingerprint: string },
): Promise<string> {
  const where = `${address}:${port}`;
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const socket = connect({
    host: address, port, rejectUnauthorized: false, minVersion: 'TLSv1.3',
    timeout: exchangeTimeoutMs,
  });
  socket.once('timeout', () => socket.destroy(new CodedError('host/unreachable', where)));
  socket.once('error', (error) => reject(linkFailure(error, where)));
  socket.once('secureConnect', () => {
    let certificate = socket.getPeerX509Certificate();
    for (let depth = 0; certificate !== undefined && depth < chainLengthMax; depth += 1) {
      if (createHash('sha256').update(certificate.raw).digest('hex') === fingerprint) {
        resolve(certificate.toString());
      }
      certificate = certificate.issuerCertificate;
    }
    reject(new CodedError('link/refused',
      `${where} does not show the authority that the join token names`));
    socket.destroy();
  });
  return promise;
}

async function exchange(
  { address, port, caPem, message }:
    { address: string; port: number; caPem: string; message: unknown },
): Promise<z.infer<typeof enrolAnswer>> {
  const where = `${address}:${port}`;
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  const decoder = new FrameDecoder();
  const socket = connect({
    host: address, port, ca: caPem, minVersion: 'TLSv1.3', timeout: exchangeTimeoutMs,
    // The chain ends at the pinned authority; a host of ours must not pass for the endpoint.
    checkServerIdentity: (_name, certificate) => {
      const { identity } = subjectAlternativeNames(certificate.subjectaltname ?? '');
      return identity?.role === 'control' ? undefined : new CodedError('ownership/role',
        `${where} is not the enrolment endpoint`);
    },
  });
  socket.once('timeout', () => socket.destroy(new CodedError('host/unreachable', where)));
  socket.on('error', (error) => reject(linkFailure(error, where)));
  socket.once('close', () => reject(new CodedError('link/lost', `${where} closed without answer`)));
  socket.once('secureConnect', () => socket.write(encodeFrame(message)));
  socket.on('data', (chunk: Buffer) => {
    try {
      const [answer] = decoder.push(chunk);
      if (answer !== undefined) resolve(answer);
    } catch (error) {
      reject(error as Error);
    }
  });
  try {
    return enrolAnswer.parse(await promise);
  } catch (error) {
    if (error instanceof CodedError) throw error;
    throw new CodedError('link/refused', `${where} gave no answer of this protocol`, error);
  } finally {
    socket.destroy();
  }
}

/**
 * New machine's side: makes a key, redeems the token, writes `host-<name>.pem`, `-key.pem` (0600),
 * `ca.pem` and `revoked.json` into `outDir`. Failures: `input/invalid` (damaged token),
 * `link/refused` (wrong authority, token used or expired), `host/unreachable`.
 */
export async function enrolHost(
  { token, outDir }: { readonly token: string; readonly outDir: string },
): Promise<IssuedFiles & { readonly revokedPath: string; readonly host: HostName }> {
  const { address, port, fingerprint, host, id, secret } = parseJoinToken(token);
  const caPem = await fetchAuthority({ address, port, fingerprint });
  const keys = await generateKeys('host');
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: `CN=host-${host}`, keys, signingAlgorithm: { name: 'Ed25519' },
  });
  const answer = await exchange({ address, port, caPem, message: {
    version: 1, kind: 'enrol', id, secret, requestPem: request.toString('pem'),
  } });
  if ('failure' in answer) throw new CodedError(answer.failure.code, answer.failure.detail);
  const issued = describeCertificate(answer.certPem);
  if (!new X509Certificate(answer.certPem).verify(new X509Certificate(caPem).publicKey)) {
    throw new CodedError('link/refused', 'the certificate is not of the pinned authority');
  }
  const stem = join(outDir, identityFileStem(issued.identity));
  const privateKey = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  const paths = { certPath: `${stem}.pem`, keyPath: `${stem}-key.pem`,
    caPath: join(outDir, 'ca.pem'), revokedPath: join(outDir, 'revoked.json') };
  await writeFileAtomically({
    path: paths.keyPath, data: pemBlock('PRIVATE KEY', privateKey), mode: secretFileMode });
  await writeFileAtomically({ path: paths.caPath, data: caPem, mode: publicFileMode });
  await writeFileAtomically({
    path: paths.revokedPath, data: answer.revoked, mode: publicFileMode });
  await writeFileAtomically({ path: paths.certPath, data: answer.certPem, mode: publicFileMode });
  return { ...paths, ...issued, host: hostName(host) };
}
