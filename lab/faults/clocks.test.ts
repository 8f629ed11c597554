import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, it } from 'vitest';
import type { Lab } from '../lab.ts';
import { clockBytes, ProcessClock } from './clocks.ts';

it('a setting is six numbers, the first and the last equal', () => {
  expect([...clockBytes({ wallOffsetMs: 2, rate: 1.5 }, { count: 3n, sinceNs: 4n, aheadNs: -5n })])
    .toEqual([3n, 2_000_000n, 1_500_000n, 4n, -5n, 3n]);
});

/** Says both its clocks, and the preloaded library that its children would have, when asked. */
const teller = 'process.stdin.on("data", () => console.log(JSON.stringify([Date.now(), '
  + 'Number(process.hrtime.bigint() / 1000000n), process.env.LD_PRELOAD ?? null])))';

it('clocks of a process follow their setting while it runs, and those of its children do not', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'novacron-clock-'));
  const clock = new ProcessClock({ directories: { data: folder } } as Lab, 'one');
  const child = spawn(process.execPath, ['-e', teller], {
    env: { ...process.env, ...clock.environment }, stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  /** How far its wall and its steady clock are ahead of ours, ms. */
  const ahead = async (): Promise<[number, number]> => {
    child.stdin.write('x');
    const { value } = await lines.next();
    const [wall, steady, preload] = JSON.parse(value as string) as [number, number, null];
    expect(preload).toBeNull();
    return [wall - Date.now(), steady - Number(process.hrtime.bigint() / 1_000_000n)];
  };
  const near = (wanted: number, found: number): void => {
    expect(Math.abs(found - wanted)).toBeLessThan(200);
  };
  try {
    for (const figure of await ahead()) near(0, figure);
    clock.set({ wallOffsetMs: 3_600_000, rate: 1 });
    const [stepped, steady] = await ahead();
    near(3_600_000, stepped);
    near(0, steady);
    clock.set({ wallOffsetMs: 0, rate: 3 });
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    clock.mend();
    const gained = await ahead();
    for (const figure of gained) near(2_000, figure);
    await new Promise((resolve) => setTimeout(resolve, 300));
    for (const figure of await ahead()) near(gained[0], figure);
  } finally {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  }
});
