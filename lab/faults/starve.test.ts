import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { memoryGroupOf, starve } from './starve.ts';

describe('memoryGroupOf', () => {
  it.each([
    ['9:name=systemd:/\n4:memory:/a/b\n0::/', '/a/b'], ['0::/system.slice/x:y', '/system.slice/x:y'],
    ['', '/'],
  ])('%j', (text, group) => {
    expect(memoryGroupOf(text)).toBe(group);
  });
});

/** Sleeps, or asks for more memory without end when it is told to. */
const eater = 'process.stdin.once("data", () => { const all = []; '
  + 'for (;;) all.push(Buffer.alloc(1 << 20, 1)); })';

const mayMakeGroups = ['/sys/fs/cgroup/memory', '/sys/fs/cgroup'].some((root) => {
  try {
    accessSync(root, constants.W_OK);
    return true;
  } catch {
    return false;
  }
});
const missing = process.getuid?.() !== 0 ? 'needs root'
  : mayMakeGroups ? null : 'needs a cgroup file system that can be written to';
describe.skipIf(missing !== null)(`starving a process${missing === null ? '' : ` (${missing})`}`, () => {
  it('has the kernel kill it, and nobody else, when it needs more', async () => {
    const child = spawn(process.execPath, ['-e', eater], { stdio: ['pipe', 'ignore', 'ignore'] });
    await once(child, 'spawn');
    const starving = starve([child.pid ?? 0], `test-${process.pid}`);
    try {
      child.stdin.write('x');
      const [, signal] = await once(child, 'exit') as [number | null, string | null];
      expect(signal).toBe('SIGKILL');
    } finally {
      child.kill('SIGKILL');
      await starving.end();
    }
  });
  it('gives it back: who did not need any more goes on where it was', async () => {
    const child = spawn('sleep', ['60'], { stdio: 'ignore' });
    await once(child, 'spawn');
    const group = (): string => readFileSync(`/proc/${child.pid}/cgroup`, 'utf8');
    const before = group();
    const starving = starve([child.pid ?? 0], `test-${process.pid}`);
    expect(group()).not.toBe(before);
    await starving.end();
    expect(group()).toBe(before);
    child.kill('SIGKILL');
  });
});
