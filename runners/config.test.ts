/** Configuration files: what a wrong one says. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { configPathOf, hostConfig, ledgerConfig, loadConfig } from './config.ts';

const dir = mkdtempSync(join(tmpdir(), 'novacron-config-'));
afterAll(() => rmSync(dir, { recursive: true }));

const tls = { certPath: 'host-h1.pem', keyPath: 'host-h1-key.pem', caPath: 'ca.pem' };
const good = {
  version: 1, name: 'h1', stateDir: '/var/lib/novacron', runtimeDir: '/run/novacron',
  memoryDir: '/dev/shm/novacron', temporal: { address: '127.0.0.1:7233', namespace: 'default',
    tls: null }, ledger: { address: '198.18.0.2', port: 7400 }, tls, revokedPath: 'revoked.json',
  payloadKeysPath: null, peer: { address: '198.18.2.11', port: 7410 },
  lanes: { address: '198.18.2.11', port: 7411 }, vmBridge: 'br-vm', segments: ['lab'],
  qemu: { command: ['/usr/bin/qemu-system-x86_64'], environment: {} },
  qemuImg: ['/usr/bin/qemu-img'], guardPath: '/usr/lib/novacron/guard', accelerator: 'tcg',
  uidBase: 200_000, metrics: { address: '198.18.0.11', port: 9464 }, profile: 'lab',
};
function problem(change: object | string): string {
  const path = join(dir, 'host.json');
  writeFileSync(path, typeof change === 'string' ? change : JSON.stringify({ ...good, ...change }));
  try {
    loadConfig({ path, schema: hostConfig });
    return 'none';
  } catch (error) {
    return (error as Error).message;
  }
}

describe('loadConfig', () => {
  it('takes a good file, paths from its folder, log level by default', () => {
    const path = join(dir, 'host.json');
    writeFileSync(path, JSON.stringify(good));
    const config = loadConfig({ path, schema: hostConfig });
    expect(config.tls.certPath).toBe(join(dir, 'host-h1.pem'));
    expect(config.stateDir).toBe('/var/lib/novacron');
    expect(config.logLevel).toBe('info');
  });
  it.each([
    ['unknown field', { colour: 1 }, /unknown field colour; remove it/],
    ['bad name', { name: '../x' }, /name: 1 to 30 of a-z/],
    ['bad port', { peer: { address: '198.18.2.11', port: 70_000 } }, /peer\.port: a port from 0/],
    ['bad address', { lanes: { address: 'h1', port: 1 } }, /lanes\.address: an IP address/],
    ['bad accelerator', { accelerator: 'xen' }, /accelerator: .*write "tcg" or "kvm"/],
    ['missing section', { ledger: undefined }, /ledger: missing or wrong; write object/],
    ['wrong version', { version: 2 }, /version: .*write 1/],
    ['root for QEMU', { uidBase: 0 }, /uidBase: a uid of at least 1000/],
    ['lab habits in production', { profile: 'production' }, /temporal\.tls: null is for the lab.*payloadKeysPath/],
    ['fault points in production', { profile: 'production', faultSocket: '/run/faults.sock' },
      /faultSocket: it is for the lab; remove it/],
    ['a hold in production', { profile: 'production', holdDirectory: '/run/hold' },
      /holdDirectory: it is for the lab; remove it/],
    ['not JSON', '{"version":1,', /host\.json: not JSON/],
  ])('%s: says file, field and what to write', (_name, change, expected) => {
    expect(problem(change)).toMatch(expected);
    expect(problem(change)).toMatch(/^input\/invalid: /);
    expect(problem(change)).toContain(join(dir, 'host.json'));
  });
  it('names a file that is not there', () => {
    expect(() => loadConfig({ path: join(dir, 'none.json'), schema: hostConfig }))
      .toThrow(/none\.json: can't be read \(ENOENT\)/);
  });
});

describe('configPathOf', () => {
  it('takes the flag before the environment and tells both when neither is there', () => {
    expect(configPathOf({ argv: ['--config', 'a'], environment: { NOVACRON_CONFIG: 'b' } })).toBe('a');
    expect(configPathOf({ argv: [], environment: { NOVACRON_CONFIG: 'b' } })).toBe('b');
    expect(() => configPathOf({ argv: [], environment: {} })).toThrow(/--config FILE/);
  });
});

describe('the length of leases', () => {
  it('is the product\'s in production, and free in a lab', () => {
    const check = (profile: 'lab' | 'production', leaseTtlMs: number | undefined) => {
      const file = join(dir, 'ledger.json');
      const tls = { certPath: '/c', keyPath: '/k', caPath: '/a' };
      writeFileSync(file, JSON.stringify({
        version: 1, profile, tls, revokedPath: '/r', metrics: null, stateDir: '/s', leaseTtlMs,
        listen: { address: '127.0.0.1', port: 1 },
      }));
      return () => loadConfig({ path: file, schema: ledgerConfig }).leaseTtlMs;
    };
    expect(check('production', undefined)()).toBe(12_000);
    expect(check('lab', 3_000)()).toBe(3_000);
    expect(check('production', 3_000)).toThrow(/leaseTtlMs: another length is for the lab/);
    expect(check('lab', 90_000)).toThrow(/leaseTtlMs/);
  });
});
