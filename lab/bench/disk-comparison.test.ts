import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { projectRoot } from '../guest-image.ts';
import { compareDisks, digestedBlockBytes } from './disk-comparison.ts';

const program = join(projectRoot, 'native/target/release/novacron-image-digest');
const hasImg = ((): boolean => {
  try {
    execFileSync('qemu-img', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
})();
const missing = [
  ...(existsSync(program) ? [] : [program]), ...(hasImg ? [] : ['qemu-img']),
];
if (missing.length > 0) console.warn(`skipped: comparing disks needs ${missing.join(', ')}`);

describe.runIf(missing.length === 0)('compareDisks', () => {
  const qemu = { qemuImg: ['qemu-img'], environment: {} };
  let directory: string;
  const at = (name: string): string => join(directory, name);
  const poke = (path: string, offset: number, text: string): void => {
    const file = openSync(path, 'r+');
    writeSync(file, text, offset);
    closeSync(file);
  };
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'novacron-disks-'));
    writeFileSync(at('a.raw'), '');
    truncateSync(at('a.raw'), 8 * mib);
    poke(at('a.raw'), 3 * mib + 7, 'content');
    for (const name of ['a', 'b']) {
      execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', at('a.raw'), at(`${name}.qcow2`)]);
    }
    // The same content in another place of the file: only the virtual disk counts.
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -z 0 1M', at('b.qcow2')], { stdio: 'ignore' });
    execFileSync('cp', ['--sparse=never', at('a.raw'), at('b.raw')]);
  });
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  const compare = (format: 'raw' | 'qcow2') => compareDisks({
    format, source: at(`a.${format}`), target: at(`b.${format}`), qemu, scratch: at('scratch') });

  it.each(['raw', 'qcow2'] as const)('%s: equal contents are equal, one byte is not', async (format) => {
    const same = await compare(format);
    expect(same).toMatchObject({ blocks: 32, dataBlocks: 1, unequalBlocks: 0, firstUnequal: [] });
    expect(same.sourceDigest).toBe(same.targetDigest);
    if (format === 'raw') poke(at('b.raw'), 5 * mib, '!');
    else execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -P 33 5M 1', at('b.qcow2')], { stdio: 'ignore' });
    const other = await compare(format);
    expect(other).toMatchObject({
      unequalBlocks: 1, firstUnequal: [(5 * mib) / digestedBlockBytes] });
    expect(other.sourceDigest).not.toBe(other.targetDigest);
    expect(existsSync(at('scratch'))).toBe(false);
  });
});
