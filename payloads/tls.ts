/**
 * Mutual TLS 1.3 of every connection between our processes: options for node:tls, who the peer is,
 * and whether it may speak. Decides what a handshake must be; leaves protocols to their modules.
 *
 * A peer is its identity (`novacron://role/name` in the SAN), never its address: hosts change
 * addresses, and an address proves nothing. Temporal and browsers check addresses as usual.
 */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect, createSecureContext } from 'node:tls';
import type { ConnectionOptions, SecureContextOptions, Server, TLSSocket,
  TlsOptions } from 'node:tls';
import { CodedError } from '../contracts/failures.ts';
import { identityUri } from '../contracts/identity.ts';
import type { Identity, Role } from '../contracts/identity.ts';
import { subjectAlternativeNames } from './certificates.ts';
import type { TlsMaterial } from './certificates.ts';
import type { RevocationList } from './revocation.ts';

export type { TlsMaterial } from './certificates.ts';

/** Hybrid post-quantum first; peers without it (Node before 24, old OpenSSL) meet at X25519. */
export const preferredGroups = 'X25519MLKEM768:X25519';
const classicGroups = 'X25519';
/** A handshake is two round trips; a peer that needs longer is stuck or hostile. */
export const handshakeTimeoutMs = 10_000;
/** How often a process looks for a rotated certificate. */
const materialLookEveryMs = 2_000;

/** Groups that this Node's OpenSSL knows; asked once. */
export const supportedGroups: string = ((): string => {
  try {
    createSecureContext({ ecdhCurve: preferredGroups });
    return preferredGroups;
  } catch {
    return classicGroups;
  }
})();

function read(path: string, field: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw new CodedError('input/invalid',
      `tls.${field} ${path} can't be read; issue it with \`novacron cert issue\``, cause);
  }
}

/** Certificate, key, authority and the TLS 1.3 floor; `input/invalid` names a missing file. */
export function secureContextOptions(material: TlsMaterial): SecureContextOptions {
  return {
    cert: read(material.certPath, 'certPath'),
    key: read(material.keyPath, 'keyPath'),
    ca: read(material.caPath, 'caPath'),
    minVersion: 'TLSv1.3',
    maxVersion: 'TLSv1.3',
    ecdhCurve: supportedGroups,
  };
}

/** Options for `tls.createServer`: a client without a certificate of our authority gets no byte. */
export function serverTlsOptions(material: TlsMaterial): TlsOptions {
  return {
    ...secureContextOptions(material),
    requestCert: true,
    rejectUnauthorized: true,
    handshakeTimeout: handshakeTimeoutMs,
  };
}

/** Who may be at the other end; `name` undefined means anyone of that role. */
export interface ExpectedPeer {
  readonly role: Role;
  readonly name?: string;
}

const describeExpected = (expected: readonly ExpectedPeer[]): string =>
  expected.map(({ role, name }) => `${role}/${name ?? '*'}`).join(' or ');
const matches = (identity: Identity, expected: readonly ExpectedPeer[]): boolean =>
  expected.some(({ role, name }) =>
    role === identity.role && (name === undefined || name === identity.name));

/**
 * Options for `tls.connect`: the server must carry an expected identity and not be revoked; its
 * address is not compared. Failures arrive as the socket's error, as a CodedError `link/refused`,
 * `ownership/role` or `certificate/revoked`.
 */
export function clientTlsOptions({ material, expected, revoked }: {
  readonly material: TlsMaterial;
  readonly expected: readonly ExpectedPeer[];
  readonly revoked: RevocationList;
}): ConnectionOptions {
  return {
    ...secureContextOptions(material),
    rejectUnauthorized: true,
    checkServerIdentity: (_name, certificate) => {
      try {
        authorize({
          identity: subjectAlternativeNames(certificate.subjectaltname ?? '').identity,
          serial: certificate.serialNumber, expected, revoked,
        });
        return undefined;
      } catch (error) {
        return error as Error;
      }
    },
  };
}

/** Identity in the peer's certificate; null without one, before or after a failed handshake. */
export function peerIdentity(socket: TLSSocket): Identity | null {
  if (!socket.authorized) return null;
  const certificate = socket.getPeerCertificate();
  return subjectAlternativeNames(certificate.subjectaltname ?? '').identity;
}

function authorize({ identity, serial, expected, revoked }: {
  identity: Identity | null; serial: string | undefined;
  expected: readonly ExpectedPeer[]; revoked: RevocationList;
}): Identity {
  if (identity === null || serial === undefined) {
    throw new CodedError('link/refused', 'the peer shows no novacron identity');
  }
  if (revoked.isRevoked(serial)) {
    throw new CodedError('certificate/revoked', `${identityUri(identity)} serial ${serial}`);
  }
  if (!matches(identity, expected)) {
    throw new CodedError('ownership/role',
      `the peer is ${identityUri(identity)}, allowed here: ${describeExpected(expected)}`);
  }
  return identity;
}

/**
 * Server side, at `secureConnection`: who connected, if it may. Throws `link/refused`,
 * `certificate/revoked` or `ownership/role`; the caller destroys the socket then.
 */
export function authorizePeer({ socket, expected, revoked }: {
  readonly socket: TLSSocket;
  readonly expected: readonly ExpectedPeer[];
  readonly revoked: RevocationList;
}): Identity {
  return authorize({
    identity: peerIdentity(socket), serial: socket.getPeerCertificate().serialNumber,
    expected, revoked,
  });
}

/** Our own certificate, asked before the peer refuses it without a word (TLS 1.3 says nothing). */
function checkOwn(material: TlsMaterial, revoked: RevocationList): void {
  const own = new X509Certificate(read(material.certPath, 'certPath'));
  const serial = own.serialNumber.toLowerCase();
  if (revoked.isRevoked(serial)) {
    throw new CodedError('certificate/revoked', `our own: ${material.certPath}, serial ${serial}`);
  }
  if (Date.parse(own.validTo) < Date.now()) {
    throw new CodedError('certificate/revoked',
      `our own: ${material.certPath} ran out on ${own.validTo}`);
  }
}

/**
 * Connects and resolves once the peer is authorized; the timeout covers TCP and handshake. In
 * TLS 1.3 the peer judges our certificate afterwards: its refusal is the end of the connection.
 */
export async function connectTls({ host, port, material, expected, revoked, localAddress, protocol,
  timeoutMs = handshakeTimeoutMs }: {
  readonly host: string; readonly port: number; readonly material: TlsMaterial;
  readonly expected: readonly ExpectedPeer[]; readonly revoked: RevocationList;
  readonly localAddress?: string; readonly timeoutMs?: number;
  /** Protocol name in the handshake (ALPN), where the server asks for one. */
  readonly protocol?: string;
}): Promise<TLSSocket> {
  checkOwn(material, revoked);
  const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
  const socket = connect({
    host, port, ...clientTlsOptions({ material, expected, revoked }),
    ...(localAddress === undefined ? {} : { localAddress }),
    ...(protocol === undefined ? {} : { ALPNProtocols: [protocol] }),
  });
  const timer = setTimeout(() => socket.destroy(new CodedError('host/unreachable',
    `${host}:${port} did not finish the handshake in ${timeoutMs} ms`)), timeoutMs);
  socket.once('secureConnect', () => resolve(socket));
  // Stays on: a later error never ends the process, the caller learns of it by `close`.
  socket.on('error', (error) => reject(linkFailure(error, `${host}:${port}`)));
  socket.once('close', () => reject(new CodedError('link/refused', `${host}:${port} closed`)));
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}

const unreachableCodes: readonly string[] = [
  'ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH', 'ETIMEDOUT', 'ENOTFOUND', 'EAI_AGAIN',
];

/** Turns an error of a TLS socket into one of the closed list; `where` is address:port. */
export function linkFailure(error: Error, where: string): CodedError {
  if (error instanceof CodedError) return error;
  const code = (error as NodeJS.ErrnoException).code ?? '';
  if (unreachableCodes.includes(code)) {
    return new CodedError('host/unreachable', `${where}: ${code}`, error);
  }
  if (code === 'CERT_HAS_EXPIRED' || code.includes('CERTIFICATE_EXPIRED')) {
    return new CodedError('certificate/revoked', `${where}: expired`, error);
  }
  if (code.startsWith('ERR_SSL') || code.startsWith('ERR_TLS') || code.includes('CERT')
    || code.startsWith('DEPTH_ZERO') || code.includes('SIGNATURE')) {
    return new CodedError('link/refused', `${where}: ${code} ${error.message}`, error);
  }
  return new CodedError('link/lost', `${where}: ${code} ${error.message}`, error);
}

/**
 * Ends a connection when its certificate is revoked or runs out while it is open; a list that
 * changes takes effect within two seconds.
 */
export function endWhenRevoked(
  { socket, revoked }: { readonly socket: TLSSocket; readonly revoked: RevocationList },
): void {
  const { serialNumber, valid_to: validTo } = socket.getPeerCertificate();
  const check = (): void => {
    if (revoked.isRevoked(serialNumber) || Date.parse(validTo) < Date.now()) {
      socket.destroy(new CodedError('certificate/revoked', `serial ${serialNumber}`));
    }
  };
  const stop = revoked.onChange(check);
  const expiry = setInterval(check, 60_000);
  expiry.unref();
  socket.once('close', () => {
    stop();
    clearInterval(expiry);
  });
}

/**
 * Gives a running server its rotated certificate without a restart. A pair that does not belong
 * together (a rotation half written) is left alone until it does. Returns a stop function.
 */
export function followMaterial({ server, material, onRotated = () => {},
  everyMs = materialLookEveryMs }: {
  readonly server: Server; readonly material: TlsMaterial;
  readonly onRotated?: (serial: string) => void; readonly everyMs?: number;
}): () => void {
  let inForce = readFileSync(material.certPath, 'utf8');
  const timer = setInterval(() => {
    try {
      const cert = readFileSync(material.certPath, 'utf8');
      if (cert === inForce) return;
      const options = secureContextOptions(material);
      createSecureContext(options);
      server.setSecureContext(options);
      inForce = cert;
      onRotated(new X509Certificate(cert).serialNumber.toLowerCase());
    } catch {
      // Half a rotation: certificate and key differ. The next look finds both.
    }
  }, everyMs);
  timer.unref();
  return () => clearInterval(timer);
}
