/**
 * The small certificate authority of one installation: who may speak as what. It makes keys,
 * certificates and rotations; `revocation.ts` takes them back, `enrolment.ts` gives a new host its
 * first one, `tls.ts` checks them on a connection.
 *
 * The authority's key is ECDSA P-256, because browsers (Temporal's UI asks the codec endpoint) take
 * no Ed25519 signature in a chain. Keys of hosts, control, ledger and lab are Ed25519: the same key
 * signs a host's records in the ledger. Keys of operator, codec and temporal are P-256, since
 * browsers hold them or talk to them. node:tls, Temporal's Rust core and Go's TLS accept both.
 */
import 'reflect-metadata';
import { createHash, randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import { mkdir, readFile, readdir } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import * as x509 from '@peculiar/x509';
import { CodedError } from '../contracts/failures.ts';
import { identityUri, parseIdentityUri } from '../contracts/identity.ts';
import type { Identity, Role } from '../contracts/identity.ts';
import { publicFileMode, secretFileMode, writeFileAtomically } from './atomic-file.ts';

const dayMs = 86_400_000;
/** Clocks of hosts may be this far behind the authority's. */
const clockSkewMs = 5 * 60_000;
const authorityValidDays = 3650;
/** Long enough for a quarter, short enough that rotation is exercised. */
export const defaultValidDays = 90;
const validDaysMax = 825;
const addressCountMax = 32;

const authorityAlgorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const ed25519 = { name: 'Ed25519' } as const;
const p256 = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

/** Key of a role's certificates; hosts sign ledger records with theirs. */
export const keyTypeOfRole = (role: Role): 'ed25519' | 'p256' =>
  role === 'operator' || role === 'codec' || role === 'temporal' ? 'p256' : 'ed25519';

/** Fresh keys of the kind that a role's certificates have. */
export const generateKeys = (role: Role): Promise<webcrypto.CryptoKeyPair> =>
  keyTypeOfRole(role) === 'p256'
    ? webcrypto.subtle.generateKey(p256, true, ['sign', 'verify'])
    : webcrypto.subtle.generateKey(ed25519, true, ['sign', 'verify']) as
      Promise<webcrypto.CryptoKeyPair>;

/** Files that a process needs for mutual TLS. */
export interface TlsMaterial {
  readonly certPath: string;
  readonly keyPath: string;
  readonly caPath: string;
}

/** An authority on disk: `ca.pem`, `ca-key.pem`, `issued/`, `revoked.json`, `tokens/`. */
export interface Authority {
  readonly dir: string;
  readonly caPath: string;
  readonly caPem: string;
  /** SHA-256 over the DER of the authority's certificate, lower-case hex; join tokens carry it. */
  readonly fingerprint: string;
}

/** A certificate as the authority lists it. */
export interface IssuedCertificate {
  readonly serial: string;
  readonly identity: Identity;
  readonly addresses: readonly string[];
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

export interface IssuedFiles extends TlsMaterial, IssuedCertificate {}

/** DER as PEM. */
export const pemBlock = (label: string, der: ArrayBuffer): string => {
  const lines = Buffer.from(der).toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
};
const pemBody = (pem: string): Buffer =>
  Buffer.from(pem.replace(/-----[A-Z ]+-----/g, '').replace(/\s/g, ''), 'base64');

const fingerprintOf = (pem: string): string =>
  createHash('sha256').update(new X509Certificate(pem).raw).digest('hex');

/** 126 random bits; the first digit is 4 to 7, so that no tool drops or adds a leading zero. */
function newSerial(): string {
  const serial = randomBytes(16);
  serial[0] = 0x40 | (serial[0] ?? 0) & 0x3f;
  return serial.toString('hex');
}

/** File stem of an identity's certificate inside the authority's folder: `host-h1`. */
export const identityFileStem = ({ role, name }: Identity): string => `${role}-${name}`;

async function readOr(path: string, what: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new CodedError('input/invalid', `${path}: ${what}`, error);
  }
}

/**
 * Makes the authority in `dir`, or opens the one that is there: running it twice changes nothing.
 * The key is written 0600 before the certificate, so that a certificate always has its key.
 */
export async function createAuthority(
  { dir, nowMs, name = 'novacron' }: { dir: string; nowMs: number; name?: string },
): Promise<Authority> {
  await mkdir(join(dir, 'issued'), { recursive: true, mode: 0o755 });
  await mkdir(join(dir, 'tokens'), { recursive: true, mode: 0o700 });
  const existing = await readFile(join(dir, 'ca.pem'), 'utf8').catch(() => null);
  if (existing !== null) return openAuthority(dir);
  const keys = await webcrypto.subtle.generateKey(authorityAlgorithm, true, ['sign', 'verify']);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: `CN=${name} authority`,
    notBefore: new Date(nowMs - clockSkewMs),
    notAfter: new Date(nowMs + authorityValidDays * dayMs),
    signingAlgorithm: authorityAlgorithm,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(
        x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const privateKey = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  await writeFileAtomically({
    path: join(dir, 'ca-key.pem'), data: pemBlock('PRIVATE KEY', privateKey), mode: secretFileMode,
  });
  await writeFileAtomically({
    path: join(dir, 'ca.pem'), data: `${certificate.toString('pem')}\n`, mode: publicFileMode,
  });
  return openAuthority(dir);
}

/** Opens an authority that exists; `input/invalid` names the missing file. */
export async function openAuthority(dir: string): Promise<Authority> {
  const caPath = join(dir, 'ca.pem');
  const caPem = await readOr(caPath, 'no authority there; make one with `novacron cert init`');
  return { dir, caPath, caPem, fingerprint: fingerprintOf(caPem) };
}

async function authorityKey(dir: string): Promise<webcrypto.CryptoKey> {
  const pem = await readOr(join(dir, 'ca-key.pem'), 'the key of the authority is not here');
  return webcrypto.subtle.importKey('pkcs8', pemBody(pem), authorityAlgorithm, false, ['sign']);
}

function subjectNames(identity: Identity, addresses: readonly string[]): x509.JsonGeneralNames {
  const uri = identityUri(identity);
  if (parseIdentityUri(uri) === null) {
    throw new CodedError('input/invalid', `identity ${uri.slice(0, 80)} is not role/name`);
  }
  if (addresses.length > addressCountMax) {
    throw new CodedError('input/invalid', `more than ${addressCountMax} addresses`);
  }
  const dnsName = /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9-]{1,63})*$/;
  return [
    { type: 'url', value: uri },
    ...addresses.map((address) => {
      if (isIP(address) !== 0) return { type: 'ip' as const, value: address };
      if (dnsName.test(address)) return { type: 'dns' as const, value: address };
      throw new CodedError('input/invalid',
        `address ${JSON.stringify(address.slice(0, 80))}: write an IP address or a DNS name`);
    }),
  ];
}

export interface CertificateRequest {
  readonly dir: string;
  readonly identity: Identity;
  /** IP addresses and DNS names for clients that check them (Temporal, browsers). */
  readonly addresses: readonly string[];
  readonly validDays?: number;
  readonly nowMs: number;
}

/** Signs a public key for an identity and files the certificate under `issued/<serial>.pem`. */
export async function signCertificate(
  { dir, identity, addresses, validDays = defaultValidDays, nowMs, publicKey }:
    CertificateRequest & { readonly publicKey: x509.PublicKeyType },
): Promise<{ readonly certPem: string; readonly issued: IssuedCertificate }> {
  if (!Number.isInteger(validDays) || validDays < 1 || validDays > validDaysMax) {
    throw new CodedError('input/invalid', `validDays ${validDays}: write 1 to ${validDaysMax}`);
  }
  const authority = await openAuthority(dir);
  const ca = new x509.X509Certificate(authority.caPem);
  const serial = newSerial();
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial,
    subject: `CN=${identityFileStem(identity)}`,
    issuer: ca.subject,
    notBefore: new Date(nowMs - clockSkewMs),
    notAfter: new Date(Math.min(nowMs + validDays * dayMs, ca.notAfter.getTime())),
    signingAlgorithm: authorityAlgorithm,
    publicKey,
    signingKey: await authorityKey(dir),
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension(
        [x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension(subjectNames(identity, addresses)),
      await x509.AuthorityKeyIdentifierExtension.create(ca),
    ],
  });
  const certPem = `${certificate.toString('pem')}\n`;
  await writeFileAtomically({
    path: join(dir, 'issued', `${serial}.pem`), data: certPem, mode: publicFileMode,
  });
  return { certPem, issued: describeCertificate(certPem) };
}

/**
 * New key and certificate for an identity, written to `<outDir>/<role>-<name>.pem` and `-key.pem`
 * (0600). Asking again gives a new pair; the old certificate stays valid until it runs out or is
 * revoked, which is the overlap of a rotation.
 */
export async function issueCertificate(
  request: CertificateRequest & { readonly outDir?: string },
): Promise<IssuedFiles> {
  const { dir, identity, outDir = dir } = request;
  const keys = await generateKeys(identity.role);
  const { certPem, issued } = await signCertificate({ ...request, publicKey: keys.publicKey });
  const stem = join(outDir, identityFileStem(identity));
  const privateKey = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  const keyPath = `${stem}-key.pem`;
  await writeFileAtomically({
    path: keyPath, data: pemBlock('PRIVATE KEY', privateKey), mode: secretFileMode,
  });
  await writeFileAtomically({ path: `${stem}.pem`, data: certPem, mode: publicFileMode });
  return { certPath: `${stem}.pem`, keyPath, caPath: join(dir, 'ca.pem'), ...issued };
}

/**
 * New certificate and key for the identity of the newest one, same addresses. Running processes
 * read it within seconds (`followMaterial` in tls.ts); the old one is left valid for the overlap.
 */
export async function rotateCertificate(
  { dir, identity, nowMs, outDir, validDays }: {
    readonly dir: string; readonly identity: Identity; readonly nowMs: number;
    readonly outDir?: string; readonly validDays?: number;
  },
): Promise<IssuedFiles> {
  const current = (await listCertificates(dir))
    .filter((one) => identityUri(one.identity) === identityUri(identity))
    .toSorted((a, b) => b.notBeforeMs - a.notBeforeMs)[0];
  if (current === undefined) {
    throw new CodedError('input/invalid',
      `${identity.role}/${identity.name}: no certificate to rotate; use \`novacron cert issue\``);
  }
  return issueCertificate({
    dir, identity, nowMs, addresses: current.addresses,
    ...(outDir === undefined ? {} : { outDir }),
    ...(validDays === undefined ? {} : { validDays }),
  });
}

/** Reads serial, identity, addresses and validity of a PEM; `input/invalid` for a foreign one. */
export function describeCertificate(certPem: string): IssuedCertificate {
  const certificate = new X509Certificate(certPem);
  const names = subjectAlternativeNames(certificate.subjectAltName ?? '');
  if (names.identity === null) {
    throw new CodedError('input/invalid', 'the certificate carries no novacron identity');
  }
  return {
    serial: certificate.serialNumber.toLowerCase(),
    identity: names.identity,
    addresses: names.addresses,
    notBeforeMs: Date.parse(certificate.validFrom),
    notAfterMs: Date.parse(certificate.validTo),
  };
}

/**
 * Splits OpenSSL's text of a SAN. Exactly one novacron URI gives an identity; none, several or a
 * quoted entry (a name with a comma inside, which no certificate of ours has) give none.
 */
export function subjectAlternativeNames(
  text: string,
): { readonly identity: Identity | null; readonly addresses: readonly string[] } {
  const entries = text.includes('"') ? [] : text.split(', ');
  const of = (label: string): string[] =>
    entries.filter((entry) => entry.startsWith(label)).map((entry) => entry.slice(label.length));
  const identities = of('URI:').map(parseIdentityUri);
  const identity = identities.length === 1 ? identities[0] ?? null : null;
  return { identity, addresses: [...of('IP Address:'), ...of('DNS:')] };
}

/** All certificates that this authority has issued, oldest first. */
export async function listCertificates(dir: string): Promise<readonly IssuedCertificate[]> {
  await openAuthority(dir);
  const names = (await readdir(join(dir, 'issued'))).filter((name) => name.endsWith('.pem'));
  const all = await Promise.all(names.map(async (name) =>
    describeCertificate(await readFile(join(dir, 'issued', name), 'utf8'))));
  return all.toSorted((a, b) => a.notBeforeMs - b.notBeforeMs || a.serial.localeCompare(b.serial));
}

/** Identity written as `role/name`; `input/invalid` names the roles that exist. */
export function parseIdentityText(text: string): Identity {
  const identity = parseIdentityUri(`novacron://${text}`);
  if (identity !== null) return identity;
  throw new CodedError('input/invalid', `${JSON.stringify(text.slice(0, 80))}: write role/name, ` +
    'role one of control, host, ledger, operator, codec, temporal, volume, lab');
}
