/** The turn of the demo, between real processes. */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import { seizeTurn, takeTurn, turnHolder } from './turn.ts';

const demo = `turn-test-${process.pid}`;
const module = fileURLToPath(new URL('turn.ts', import.meta.url));
const children: ChildProcess[] = [];
/** Starting node takes a second on a busy machine. */
const testMsMax = 60_000;

/** A process that holds the turn until it ends. */
async function holder(): Promise<ChildProcess> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', `
    const { takeTurn } = await import(${JSON.stringify(module)});
    await takeTurn(${JSON.stringify(demo)}, '/elsewhere');
    console.log('holds'); setInterval(() => 0, 1000);`], { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  await new Promise((resolve) => child.stdout?.once('data', resolve));
  return child;
}
const ended = (child: ChildProcess): Promise<unknown> =>
  child.exitCode !== null || child.signalCode !== null ? Promise.resolve()
    : new Promise((resolve) => child.once('exit', resolve));

afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill('SIGKILL');
    await ended(child);
  }
});

describe('the turn of the demo', () => {
  it('is refused with who has it, and free again when that process was killed', async () => {
    const child = await holder();
    expect(await turnHolder(demo)).toMatchObject({
      project: '/elsewhere', process: { pid: child.pid } });
    await expect(takeTurn(demo, '/here')).rejects.toMatchObject({
      code: 'input/invalid',
      detail: expect.stringMatching(new RegExp(`process ${child.pid}, of /elsewhere.*--down`)),
    });
    child.kill('SIGKILL');
    await ended(child);
    (await takeTurn(demo, '/here')).leave();
  }, testMsMax);

  it('is seized by ending who has it', async () => {
    const child = await holder();
    const turn = await seizeTurn(demo, '/here');
    await ended(child);
    expect(child.signalCode).toBe('SIGTERM');
    await expect(takeTurn(demo, '/there')).rejects.toMatchObject({
      detail: expect.stringContaining(`process ${process.pid}, of /here`) });
    turn.leave();
    expect(await turnHolder(demo)).toBeNull();
  }, testMsMax);
});
