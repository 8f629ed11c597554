/**
 * The demo's life as a process: killed half-way at several moments, a second one beside it, and
 * `--down`, which leaves nothing of any of them.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { projectRoot } from '../../lab/guest-image.ts';
import { Lab, labDirectories } from '../../lab/lab.ts';
import { processesOfLab } from '../../lab/processes.ts';
import { listLabs, readLabState } from '../../lab/state.ts';
import { missingForLab, tellSkipped } from '../support/lab-needs.ts';

const missing = missingForLab();
/** Not the demo of whoever runs the tests. */
const demo = `test-${process.pid}`;
const operatorDirectory = join(projectRoot, '.novacron', demo);
/** Composing takes 15 s and a boot 10 s on a quiet machine; several times that on a busy one. */
const testMsMax = 240_000;
const running: ChildProcess[] = [];

interface Demo {
  readonly child: ChildProcess;
  /** Resolves with all that it has said once a line matches; rejects when it ends before. */
  readonly says: (pattern: RegExp) => Promise<string>;
  readonly ends: Promise<{ readonly code: number | null; readonly said: string }>;
}

function start(...args: readonly string[]): Demo {
  const child = spawn(process.execPath, [join(projectRoot, 'lab/demo/main.ts'), ...args], {
    stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, NOVACRON_DEMO: demo },
  });
  running.push(child);
  let said = '';
  const looks = new Set<() => void>();
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
    for (const look of looks) look();
  });
  const ends = new Promise<{ code: number | null; said: string }>((resolve) => {
    child.once('close', (code) => resolve({ code, said }));
  });
  const says = (pattern: RegExp): Promise<string> => new Promise((resolve, reject) => {
    const look = (): void => {
      if (pattern.test(said)) resolve(said);
    };
    looks.add(look);
    look();
    void ends.then(() => reject(new Error(`it ended before ${pattern}: ${said}`)));
  });
  return { child, says, ends };
}

const small = ['--memory', '192MiB', '--disk', '0', '--working-set', '16MiB'];
const labs = (): string[] => listLabs().filter((id) => readLabState(id)?.notes['purpose'] === demo);

/** Everything of a lab that is still on this machine. */
const remainsOf = (id: string): string[] => [
  ...(existsSync('/run/netns') ? readdirSync('/run/netns') : []).filter((name) => name.startsWith(id)),
  ...readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => line.includes(id)),
  ...processesOfLab(id).map(({ name, pid }) => `${name} ${pid}`),
  ...Object.values(labDirectories(id)).filter(existsSync),
  ...listLabs().filter((known) => known === id),
];

async function down(): Promise<string> {
  const { code, said } = await start('--down').ends;
  expect(code, said).toBe(0);
  expect(labs()).toEqual([]);
  expect(existsSync(operatorDirectory)).toBe(false);
  return said;
}

describe.runIf(missing.length === 0)('the demo', () => {
  afterEach(async () => {
    for (const child of running.splice(0)) child.kill('SIGKILL');
    await down();
  }, testMsMax);

  it.each([
    ['while it makes the network', /lab nc[0-9a-f]{4}/],
    ['while it starts the processes', /certificates/],
    ['while it starts the hosts', /s  Temporal\n/],
    ['while its VM boots', /boots/],
    ['while its VM moves', /moving demo/],
  ])('killed %s leaves nothing after --down', async (_when, moment) => {
    const { child, says, ends } = start(...small);
    await says(moment);
    const [id = ''] = labs();
    expect(remainsOf(id)).not.toEqual([]);
    child.kill('SIGKILL');
    await ends;
    expect(await down()).toContain(`removed lab ${id}`);
    expect(remainsOf(id)).toEqual([]);
  }, testMsMax);

  it('is one a machine, while it runs and while its lab stays; --down ends it', async () => {
    const first = start(...small);
    await first.says(/boots/);
    const beside = await start(...small).ends;
    expect(beside.code).toBe(1);
    expect(beside.said).toContain(`a demo is running on this machine (process ${first.child.pid}, of `
      + `${projectRoot})`);
    // From here on the lab stays up without the demo; another folder's demo does not take it.
    const [id = ''] = labs();
    first.child.kill('SIGKILL');
    await first.ends;
    const lab = Lab.open(id);
    lab?.note('project', '/elsewhere');
    const other = await start(...small).ends;
    expect(other.code).toBe(1);
    expect(other.said).toMatch(/the demo lab nc[0-9a-f]{4} of \/elsewhere is up.*--down/);
    expect(remainsOf(id)).not.toEqual([]);
    lab?.note('project', projectRoot);
    const again = start(...small);
    await again.says(/is up from before/);
    expect(await down()).toContain(`removed lab ${id}`);
    expect(await again.ends).toMatchObject({ code: null });
    expect(remainsOf(id)).toEqual([]);
  }, testMsMax);
});

describe.runIf(missing.length > 0)('the demo', () => {
  it('is not tried here', () => tellSkipped('the demo', missing));
});
