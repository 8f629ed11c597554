/** Levels of real processes, as the kernel shows them. */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { getPriority, setPriority } from 'node:os';
import { expect, test } from 'vitest';
import {
  autogroupNice, calmVmm, copyNice, raiseSession, raiseVmm, raisedNice, takeOrdinaryPriority,
} from './cpu-priority.ts';

/** A process with a session of its own, as a VMM is; `body` gets its pid. */
async function withProcess(body: (pid: number) => Promise<void>): Promise<void> {
  const child = spawn('sleep', ['60'], { detached: true, stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  try {
    if (child.pid === undefined) throw new Error('sleep did not start');
    await body(child.pid);
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
}

const sessionNice = (pid: number): number | null =>
  existsSync(`/proc/${pid}/autogroup`)
    ? autogroupNice(readFileSync(`/proc/${pid}/autogroup`, 'utf8')) : null;

test('a line of /proc/PID/autogroup is read', () => {
  expect(autogroupNice('/autogroup-26 nice 0\n')).toBe(0);
  expect(autogroupNice('/autogroup-26 nice -10\n')).toBe(-10);
  expect(autogroupNice('')).toBeNull();
});

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.warn('priorities of real processes are skipped: root missing');

test.skipIf(!isRoot)('a VMM is raised for its blackout and calmed again', async () => {
  await withProcess(async (pid) => {
    const before = sessionNice(pid);
    await raiseVmm(pid, { session: false });
    expect(getPriority(pid)).toBe(raisedNice);
    expect(sessionNice(pid)).toBe(before);
    await raiseVmm(pid, { session: true });
    expect(sessionNice(pid)).toBe(before === null ? null : raisedNice);
    await calmVmm(pid);
    expect(getPriority(pid)).toBe(0);
    expect(sessionNice(pid)).toBe(before);
  });
});

test.skipIf(!isRoot)('the session has the level of the most urgent work under way', async () => {
  const before = sessionNice(process.pid);
  const later = (nice: number): Promise<void> =>
    expect.poll(() => sessionNice(process.pid)).toBe(before === null ? null : nice);
  const copy = raiseSession('copy');
  await later(copyNice);
  const [one, two] = [raiseSession('blackout'), raiseSession('blackout')];
  await later(raisedNice);
  one.over();
  one.over();
  expect(sessionNice(process.pid)).toBe(before === null ? null : raisedNice);
  two.over();
  await later(copyNice);
  copy.over();
  await later(0);
});

test.skipIf(!isRoot)('a child that inherits the level of the runner gives it back', async () => {
  await withProcess(async (pid) => {
    setPriority(pid, raisedNice);
    takeOrdinaryPriority(pid);
    expect(getPriority(pid)).toBe(0);
    await Promise.resolve();
  });
});

test('a process that is gone harms nobody', async () => {
  let gone = 0;
  await withProcess(async (pid) => {
    gone = pid;
    await Promise.resolve();
  });
  await raiseVmm(gone, { session: true });
  await calmVmm(gone);
  takeOrdinaryPriority(gone);
});
