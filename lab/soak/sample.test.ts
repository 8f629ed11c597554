import { mkdirSync, mkdtempSync, openSync, closeSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { filesBelow, processHolds } from './sample.ts';

describe('what a process holds', () => {
  const held = (what: string): number =>
    processHolds('me', process.pid).find((one) => one.what === what)?.value ?? -1;
  it('is read from /proc, and more is seen as more', () => {
    const before = held('descriptors');
    const opened = Array.from({ length: 5 }, () => openSync('/dev/null', 'r'));
    expect(held('descriptors')).toBe(before + 5);
    for (const one of opened) closeSync(one);
    const memory = held('memoryBytes');
    const kept = Buffer.alloc(64 << 20, 1);
    expect(held('memoryBytes') - memory).toBeGreaterThan(32 << 20);
    expect(kept.length).toBe(64 << 20);
    expect(held('threads')).toBeGreaterThan(1);
  });
  it('is nothing of a process that is gone', () => {
    expect(processHolds('nobody', 2 ** 22 + 1)).toEqual([]);
  });
});

describe('files of a lab', () => {
  it('are counted without logs and without Temporal\'s database', () => {
    const folder = mkdtempSync(join(tmpdir(), 'novacron-soak-'));
    mkdirSync(join(folder, 'logs'));
    mkdirSync(join(folder, 'h1/vms'), { recursive: true });
    for (const name of ['logs/ledger.log', 'temporal.db', 'temporal.db-wal', 'h1/vms/spec.json']) {
      writeFileSync(join(folder, name), '');
    }
    expect(filesBelow(folder)).toEqual(['h1/vms/spec.json']);
    expect(filesBelow(join(folder, 'gone'))).toEqual([]);
    rmSync(folder, { recursive: true });
  });
});
