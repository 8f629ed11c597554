import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import { holdBeforeResume, holdFiles } from './hold-before-resume.ts';

const vm = vmName('web');
let directory: string;
beforeEach(() => { directory = mkdtempSync(join(tmpdir(), 'novacron-hold-')); });
afterEach(() => rmSync(directory, { recursive: true }));

test('nothing is held without a directory, without a file, or by the file of another VM', async () => {
  await holdBeforeResume(null, vm);
  writeFileSync(join(directory, 'other'), '');
  await holdBeforeResume(directory, vm);
  expect(existsSync(holdFiles(directory, vm).held)).toBe(false);
});

test('a held VM goes on when its file is gone, and says that it stands until then', async () => {
  const { hold, held } = holdFiles(directory, vm);
  writeFileSync(hold, '');
  let goesOn = false;
  const holding = holdBeforeResume(directory, vm).then(() => { goesOn = true; });
  while (!existsSync(held)) await sleep(5);
  expect(goesOn).toBe(false);
  rmSync(hold);
  await holding;
  expect(existsSync(held)).toBe(false);
});

test('a forgotten file holds nobody for ever', async () => {
  writeFileSync(holdFiles(directory, vm).hold, '');
  await holdBeforeResume(directory, vm, 50);
});
