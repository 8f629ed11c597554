import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runProgram } from './process.mjs';
import { checkKernel, isAtLeast, parseVersion } from './requirements.mjs';
import { Stamps, digestOf, takeLock } from './stamps.mjs';
import { checkDigest } from './steps.mjs';
import { systemPackages } from './system-packages.mjs';

let folder = '';
beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'novacron-bootstrap-')); });
afterAll(() => { rmSync(folder, { recursive: true, force: true }); });

describe('requirements', () => {
  it('compares versions part by part', () => {
    expect(isAtLeast(parseVersion('go version go1.26.8 linux'), [1, 26, 0])).toBe(true);
    expect(isAtLeast(parseVersion('cargo 1.9.0'), [1, 95, 0])).toBe(false);
    expect(isAtLeast(parseVersion('v20.0.0'), [20, 0, 0])).toBe(true);
  });

  it('refuse a kernel without PAGEMAP_SCAN and say which to take', () => {
    expect(() => checkKernel('6.1.0-56-amd64')).toThrow(/6\.7 or newer.*Debian 13/s);
    expect(checkKernel('6.8.0-31-generic')).toBe('6.8.0-31-generic');
    expect(() => checkKernel('24.1.0', 'darwin')).toThrow(/Linux on x86-64/);
  });

  it('ask for the packages of the tests only for tests', () => {
    expect(systemPackages('demo')).not.toContain('postgresql');
    // The outside client and the address check of preflight run its ping and arping.
    expect(systemPackages('demo')).toContain('busybox');
    expect(systemPackages('test')).toContain('postgresql');
    expect(systemPackages('cluster')).toContain('postgresql');
    expect(systemPackages('cluster')).not.toContain('maven');
    expect(systemPackages('models')).toContain('default-jre-headless');
  });
});

describe('a file from elsewhere', () => {
  it('is taken only with its digest', () => {
    const path = join(folder, 'jar');
    writeFileSync(path, 'abc');
    const right = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad';
    checkDigest(path, right);
    writeFileSync(path, 'abd');
    expect(() => checkDigest(path, right)).toThrow(/is not what it should be/);
    expect(existsSync(path)).toBe(false);
  });
});

describe('stamps', () => {
  it('change with content, names and words, and not with build output', () => {
    mkdirSync(join(folder, 'in/target'), { recursive: true });
    writeFileSync(join(folder, 'in/a'), '1');
    const before = digestOf({ root: folder, paths: ['in'], words: ['w'] });
    writeFileSync(join(folder, 'in/target/x'), 'output');
    expect(digestOf({ root: folder, paths: ['in'], words: ['w'] })).toBe(before);
    expect(digestOf({ root: folder, paths: ['in'], words: ['v'] })).not.toBe(before);
    writeFileSync(join(folder, 'in/a'), '2');
    expect(digestOf({ root: folder, paths: ['in'], words: ['w'] })).not.toBe(before);
  });

  it('hold only what was set', () => {
    const stamps = new Stamps(join(folder, 'stamps'));
    expect(stamps.holds('step', 'd1')).toBe(false);
    stamps.set('step', 'd1');
    expect(stamps.holds('step', 'd1')).toBe(true);
    expect(stamps.holds('step', 'd2')).toBe(false);
  });
});

describe('the lock', () => {
  it('lets a second run wait for the first', async () => {
    const path = join(folder, 'lock');
    const release = await takeLock(path, () => undefined);
    const order: string[] = [];
    const second = takeLock(path, () => order.push('told')).then((free) => {
      order.push('second');
      free();
    });
    await new Promise((wake) => { setTimeout(wake, 100); });
    order.push('first ends');
    release();
    await second;
    expect(order).toEqual(['told', 'first ends', 'second']);
  });

  it('is taken over from a run that died', async () => {
    const path = join(folder, 'stale');
    writeFileSync(path, JSON.stringify({ pid: process.pid, start: 'another process' }));
    const release = await takeLock(path, () => { throw new Error('it waited'); });
    release();
  });
});

describe('programs', () => {
  it('explain a full disk and a missing network in one sentence', async () => {
    await expect(runProgram('sh', ['-c', 'echo "write: No space left on device" >&2; exit 1']))
      .rejects.toThrow(/the disk is full/);
    await expect(runProgram('sh', ['-c', 'echo "getaddrinfo EAI_AGAIN host" >&2; exit 1']))
      .rejects.toThrow(/not reached: check the network/);
    await expect(runProgram('no-such-program', [])).rejects.toThrow(/could not be started/);
  });
});
