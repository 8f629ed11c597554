import { generateKeyPairSync } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { MigrationId } from '../../../contracts/identity.ts';
import { canonicalJson, ed25519Checks, signTransferRecord } from './signing.ts';

const seed = Number(process.env['NOVACRON_SEED'] ?? Date.now() % 2_147_483_647);

describe('canonical JSON', () => {
  test(`does not depend on the order of keys (NOVACRON_SEED=${seed})`, () => {
    const shuffled = (value: unknown): unknown => {
      if (Array.isArray(value)) return value.map(shuffled);
      if (typeof value !== 'object' || value === null) return value;
      return Object.fromEntries(Object.entries(value).toReversed().map(([k, v]) => [k, shuffled(v)]));
    };
    fc.assert(fc.property(fc.jsonValue(), (value) => {
      expect(canonicalJson(shuffled(value))).toBe(canonicalJson(value));
      expect(JSON.parse(canonicalJson(value))).toEqual(JSON.parse(JSON.stringify(value)));
    }), { seed });
  });

  test('sorts by code unit and leaves undefined fields out', () => {
    expect(canonicalJson({ b: 1, a: [true, null], Z: 'ü"', u: undefined }))
      .toBe('{"Z":"ü\\"","a":[true,null],"b":1}');
  });
});

describe('transfer records', () => {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const pem = publicKey.export({ type: 'spki', format: 'pem' }).toString();
  const signed = signTransferRecord({
    version: 1, migration: 'migrate/v/r' as MigrationId, epoch: 3, digest: 'ab', missingDigest: '',
    missingPageCount: 0, ioSequence: [1, 2],
  }, privateKey);

  test('a change of any field breaks the signature', () => {
    expect(ed25519Checks.transferRecord(signed, pem)).toBe(true);
    const changes = [
      { epoch: 4 }, { digest: 'ac' }, { missingDigest: 'x' }, { missingPageCount: 1 },
      { ioSequence: [2, 1] }, { migration: 'migrate/v/s' as MigrationId },
      { signature: signed.signature.slice(4) }, { signature: '' },
    ];
    for (const change of changes) {
      expect(ed25519Checks.transferRecord({ ...signed, ...change }, pem)).toBe(false);
    }
  });

  test('only Ed25519 public keys are keys', () => {
    const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    expect(ed25519Checks.isPublicKey(pem)).toBe(true);
    for (const bad of [
      '', 'nonsense', ec.publicKey.export({ type: 'spki', format: 'pem' }).toString(),
      privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    ]) expect(ed25519Checks.isPublicKey(bad)).toBe(false);
    expect(ed25519Checks.transferRecord(signed, 'nonsense')).toBe(false);
  });
});
