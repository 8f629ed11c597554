/**
 * Signatures of what hosts attest to the ledger: Quiesced, Ready (TransferRecord) and Declined.
 * Ed25519 by the host's certificate key over canonical JSON; used by hosts to sign, by the ledger
 * to verify. Which host has to have signed is decided by move-events.ts.
 */
import type { KeyObject } from 'node:crypto';
import { createPublicKey, sign, verify } from 'node:crypto';
import type { Incarnation, MigrationId, VmName } from '../../../contracts/identity.ts';
import type { TransferRecord } from '../../../contracts/ownership.ts';

/** JSON with sorted keys and no white space: the same bytes for the same value everywhere. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const fields = Object.entries(value)
    .filter(([, field]) => field !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, field]) => `${JSON.stringify(key)}:${canonicalJson(field)}`);
  return `{${fields.join(',')}}`;
}

/** A transfer record before its signature. */
export type UnsignedTransferRecord = Omit<TransferRecord, 'signature'>;

/** What a target signs when it declines: its VMM is dead and no RESUME was seen. */
export interface DeclinedStatement {
  readonly vm: VmName;
  readonly migration: MigrationId;
  /** The epoch made by the commit (that of the start it takes back). */
  readonly epoch: number;
  readonly incarnation: Incarnation;
}

function unsigned(record: UnsignedTransferRecord): UnsignedTransferRecord {
  const { version, migration, epoch, digest, missingDigest, missingPageCount, ioSequence } = record;
  return { version, migration, epoch, digest, missingDigest, missingPageCount, ioSequence };
}
const recordBytes = (record: UnsignedTransferRecord): Buffer =>
  Buffer.from(canonicalJson(unsigned(record)));
const declinedBytes = ({ vm, migration, epoch, incarnation }: DeclinedStatement): Buffer =>
  Buffer.from(canonicalJson({ kind: 'declined', version: 1, vm, migration, epoch, incarnation }));

/** Signs what source or target attest; `key` is the host's Ed25519 certificate key. */
export const signTransferRecord = (
  record: UnsignedTransferRecord, key: KeyObject,
): TransferRecord => ({
  ...unsigned(record),
  signature: sign(null, recordBytes(record), key).toString('base64'),
});

/** Signature for a `declined` event. */
export const signDeclined = (statement: DeclinedStatement, key: KeyObject): string =>
  sign(null, declinedBytes(statement), key).toString('base64');

/** Parsed keys by PEM; hosts are few, the bound only stops a stream of rotations. */
const keyCache = new Map<string, KeyObject>();
const keyCacheMax = 1_024;

function publicKey(pem: string): KeyObject | null {
  const cached = keyCache.get(pem);
  if (cached !== undefined) return cached;
  try {
    const key = createPublicKey(pem);
    if (key.asymmetricKeyType !== 'ed25519' || pem.includes('PRIVATE')) return null;
    if (keyCache.size >= keyCacheMax) keyCache.clear();
    keyCache.set(pem, key);
    return key;
  } catch {
    return null;
  }
}

function verifies(bytes: Buffer, signature: string, pem: string): boolean {
  const key = publicKey(pem);
  const signatureBytes = Buffer.from(signature, 'base64');
  return key !== null && signatureBytes.length === 64 && verify(null, bytes, key, signatureBytes);
}

/** Checks that the rules ask for; an argument, so that explorers need no cryptography. */
export interface SignatureChecks {
  isPublicKey(pem: string): boolean;
  transferRecord(record: TransferRecord, publicKeyPem: string): boolean;
  declined(statement: DeclinedStatement, signature: string, publicKeyPem: string): boolean;
}

/** The real checks. */
export const ed25519Checks: SignatureChecks = {
  isPublicKey: (pem) => publicKey(pem) !== null,
  transferRecord: (record, pem) => verifies(recordBytes(record), record.signature, pem),
  declined: (statement, signature, pem) => verifies(declinedBytes(statement), signature, pem),
};
