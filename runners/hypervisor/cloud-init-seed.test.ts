import { describe, expect, test } from 'vitest';
import { buildSeed } from './cloud-init-seed.ts';

const seed = buildSeed({
  instanceId: 'novacron-web',
  hostName: 'web',
  userData: '#cloud-config\nruncmd: [echo, hé]\n',
});
const sector = (index: number): Buffer => seed.subarray(index * 2048, (index + 1) * 2048);

/** Reads a directory as a driver would: records until the first of length 0. */
function files(
  directory: Buffer,
  decode: (name: Buffer) => string,
): Readonly<Record<string, string>> {
  const found: Record<string, string> = {};
  for (let at = 0; (directory[at] ?? 0) > 0; at += directory[at] ?? 0) {
    const name = directory.subarray(at + 33, at + 33 + (directory[at + 32] ?? 0));
    if (name.length === 1) continue;
    const start = directory.readUInt32LE(at + 2) * 2048;
    const length = directory.readUInt32LE(at + 10);
    expect(directory.readUInt32BE(at + 6)).toBe(start / 2048);
    expect(directory.readUInt32BE(at + 14)).toBe(length);
    found[decode(name)] = seed.subarray(start, start + length).toString('utf8');
  }
  return found;
}
const expected = {
  'meta-data': 'instance-id: novacron-web\nlocal-hostname: web\n',
  'user-data': '#cloud-config\nruncmd: [echo, hé]\n',
};

describe('the NoCloud seed', () => {
  test('is whole sectors, labelled CIDATA, and says how long it is', () => {
    expect(seed.length % 2048).toBe(0);
    expect(sector(16).subarray(0, 7).toString('latin1')).toBe('\u0001CD001\u0001');
    expect(sector(16).subarray(40, 72).toString('latin1').trim()).toBe('CIDATA');
    expect(sector(16).readUInt32LE(80)).toBe(seed.length / 2048);
    expect(sector(18).subarray(0, 7).toString('latin1')).toBe('\u00ffCD001\u0001');
  });
  test('holds both files in both trees, under the names that cloud-init looks for', () => {
    const plain = sector(sector(16).readUInt32LE(158));
    expect(
      files(plain, (name) => name.toString('latin1').replace(/\.;1$/, '').toLowerCase()),
    ).toEqual(expected);
    expect(sector(17).subarray(88, 91).toString('latin1')).toBe('%/E');
    const joliet = sector(sector(17).readUInt32LE(158));
    expect(files(joliet, (name) => Buffer.from(name).swap16().toString('utf16le'))).toEqual(
      expected,
    );
  });
  test('is the same for the same VM, so that a target makes equal bytes', () => {
    const again = { instanceId: 'a', hostName: 'a', userData: 'x'.repeat(32 * 1024) };
    expect(buildSeed(again).equals(buildSeed(again))).toBe(true);
    expect(buildSeed({ ...again, userData: '' }).length).toBe(27 * 2048);
  });
});
