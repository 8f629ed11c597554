import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DiskSpec } from '../../contracts/runner.ts';
import { makeDisk, refusalOfHeader, type ImageContext } from './disk-image.ts';

const lacking = ((): string | null => {
  if (process.getuid?.() !== 0) return 'root';
  try {
    execFileSync('qemu-img', ['--version']);
    return null;
  } catch {
    return 'qemu-img';
  }
})();
if (lacking !== null) console.warn(`disk image tests are skipped: ${lacking} missing`);

const uid = 61_999;
const disk = (changes: Partial<DiskSpec> = {}): DiskSpec => ({
  name: 'root',
  format: 'qcow2',
  sizeBytes: 8 << 20,
  sourceImage: null,
  volume: 'local',
  ...changes,
});

describe.skipIf(lacking !== null)('disk images', () => {
  let directory = '';
  let images = '';
  let context: ImageContext;
  let count = 0;
  const target = (): string => join(directory, 'out', `${(count += 1)}.img`);
  const img = (...args: readonly string[]): string =>
    execFileSync('qemu-img', args, { encoding: 'utf8' });
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'novacron-images-'));
    chmodSync(directory, 0o711);
    images = join(directory, 'images');
    mkdirSync(images);
    mkdirSync(join(directory, 'out'));
    chmodSync(join(directory, 'out'), 0o777);
    context = {
      qemu: { command: [], imgCommand: ['qemu-img'], environment: {}, version: '' },
      uid,
      gid: uid,
      imageDirectories: [images],
    };
  });
  afterAll(() => {
    rmSync(directory, { recursive: true, force: true });
  });
  const refused = async (name: string, changes: Partial<DiskSpec> = {}): Promise<void> => {
    const path = target();
    await expect(
      makeDisk({ disk: disk({ sourceImage: join(images, name), ...changes }), path }, context),
    ).rejects.toMatchObject({ code: 'vm/image-refused' });
    expect(() => statSync(path)).toThrow(/ENOENT/);
  };

  test('an empty disk has the size, the format and the owner that were asked for', async () => {
    for (const format of ['raw', 'qcow2'] as const) {
      const path = target();
      await makeDisk({ disk: disk({ format }), path }, context);
      expect(JSON.parse(img('info', '--output=json', path))).toMatchObject({
        format,
        'virtual-size': 8 << 20,
      });
      expect(statSync(path)).toMatchObject({ uid, mode: 0o100600 });
    }
  });

  test('a copy is grown to the size of the disk and keeps its content', async () => {
    writeFileSync(join(images, 'content'), Buffer.alloc(1 << 20, 'novacron'));
    img('convert', '-f', 'raw', '-O', 'qcow2', join(images, 'content'), join(images, 'good.qcow2'));
    for (const [format, name] of [
      ['raw', 'content'],
      ['qcow2', 'good.qcow2'],
    ] as const) {
      const path = target();
      await makeDisk({ disk: disk({ format, sourceImage: join(images, name) }), path }, context);
      expect(JSON.parse(img('info', '--output=json', path))).toMatchObject({
        'virtual-size': 8 << 20,
      });
      img('convert', '-f', format, '-O', 'raw', path, `${path}.raw`);
      expect(
        readFileSync(`${path}.raw`)
          .subarray(0, 1 << 20)
          .equals(Buffer.alloc(1 << 20, 'novacron')),
      ).toBe(true);
      expect(statSync(path)).toMatchObject({ uid, mode: 0o100600 });
    }
  });

  test('images that reach for something else are refused and leave nothing', async () => {
    img('create', '-q', '-f', 'qcow2', join(images, 'base.qcow2'), '1M');
    img(
      'create',
      '-q',
      '-f',
      'qcow2',
      '-b',
      join(images, 'base.qcow2'),
      '-F',
      'qcow2',
      join(images, 'backed.qcow2'),
    );
    img(
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      `data_file=${join(images, 'data.raw')}`,
      join(images, 'external.qcow2'),
      '1M',
    );
    // Making a LUKS image takes seconds of key stretching; its mark in the header is what decides.
    const encrypted = readFileSync(join(images, 'base.qcow2'));
    encrypted.writeUInt32BE(2, 32);
    writeFileSync(join(images, 'luks.qcow2'), encrypted);
    img('create', '-q', '-f', 'qcow2', join(images, 'large.qcow2'), '1G');
    for (const [name, at] of [
      ['tables.qcow2', 40],
      ['refcounts.qcow2', 48],
    ] as const) {
      const image = readFileSync(join(images, 'base.qcow2'));
      image.writeBigUInt64BE(2n ** 40n, at);
      writeFileSync(join(images, name), image);
      await refused(name);
    }
    await refused('backed.qcow2');
    await refused('external.qcow2');
    await refused('luks.qcow2');
    await refused('large.qcow2');
    await refused('base.qcow2', { format: 'raw' });
    writeFileSync(join(images, 'plain.raw'), Buffer.alloc(4096));
    await refused('plain.raw');
  }, 30_000);

  test('paths that leave the image directories are refused', async () => {
    writeFileSync(join(directory, 'outside.raw'), Buffer.alloc(4096));
    symlinkSync(join(directory, 'outside.raw'), join(images, 'link.raw'));
    mkdirSync(join(images, 'real'));
    writeFileSync(join(images, 'real', 'inner.raw'), Buffer.alloc(4096));
    symlinkSync(join(images, 'real'), join(images, 'linked'));
    execFileSync('mkfifo', [join(images, 'pipe.raw')]);
    writeFileSync(join(images, 'huge.raw'), '');
    truncateSync(join(images, 'huge.raw'), 64 << 20);
    for (const name of [
      'link.raw',
      'linked/inner.raw',
      'pipe.raw',
      'huge.raw',
      'none.raw',
      '../outside.raw',
    ]) {
      await refused(name, { format: 'raw' });
    }
    await refused('', { format: 'raw' });
    await makeDisk(
      {
        disk: disk({ format: 'raw', sourceImage: join(images, 'real/inner.raw') }),
        path: target(),
      },
      context,
    );
  });

  test('whatever is damaged in a header, the verdict is a verdict', () => {
    const good = readFileSync(join(images, 'good.qcow2')).subarray(0, 512);
    expect(refusalOfHeader(good, disk())).toBeNull();
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 0, max: 120 }), fc.integer({ min: 0, max: 255 })), {
          maxLength: 8,
        }),
        fc.integer({ min: 0, max: 512 }),
        (edits, length) => {
          const bytes = Buffer.from(good);
          for (const [at, value] of edits) bytes[at] = value;
          const verdict = refusalOfHeader(bytes.subarray(0, length), disk());
          const accepted = bytes.subarray(0, length);
          if (verdict !== null) return;
          expect(accepted.length).toBeGreaterThanOrEqual(104);
          expect(accepted.readBigUInt64BE(8)).toBe(0n);
          expect(accepted.readUInt32BE(32)).toBe(0);
        },
      ),
      { numRuns: 2000 },
    );
  });
});
