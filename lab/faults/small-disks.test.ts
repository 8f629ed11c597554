import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { fillDisk } from './small-disks.ts';

it('a folder of the machine\'s own file system is never filled', () => {
  const folder = mkdtempSync(join(tmpdir(), 'novacron-disk-'));
  try {
    expect(() => fillDisk(folder)).toThrow(/the machine's own disk/);
    expect(readdirSync(folder)).toEqual([]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
