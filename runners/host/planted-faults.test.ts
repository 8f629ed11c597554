import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import { plantedDelayMs, plantedFault, plantedFile } from './planted-faults.ts';

describe('planted faults', () => {
  const vm = vmName('web');
  let directory: string;
  beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'novacron-planted-')); });
  afterAll(() => rmSync(directory, { recursive: true }));

  test('there are none without a directory or a file', async () => {
    expect(await plantedFault(null, vm, 'source')).toBeNull();
    expect(await plantedFault(directory, vm, 'source')).toBeNull();
    expect(await plantedDelayMs(directory, vm)).toBe(0);
  });

  test('one is of its side and its VM', async () => {
    const fault = { fault: 'skipped', page: 7, mark: null } as const;
    writeFileSync(plantedFile(directory, vm), JSON.stringify({ side: 'source', ...fault }));
    expect(await plantedFault(directory, vm, 'source')).toEqual(fault);
    expect(await plantedFault(directory, vm, 'target')).toBeNull();
    expect(await plantedFault(directory, vmName('db'), 'source')).toBeNull();
  });

  test('nonsense is refused, not ignored', async () => {
    writeFileSync(plantedFile(directory, vm), JSON.stringify({ side: 'source', fault: 'no such' }));
    await expect(plantedFault(directory, vm, 'source')).rejects.toThrow();
  });
});
