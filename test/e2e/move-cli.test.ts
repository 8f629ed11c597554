/**
 * The command line against a lab: a VM made from a spec file, moved and watched, commanded, asked
 * why, its console, the host's own command; and a machine that joins with a token and takes a VM.
 * Every command is the real program in a process of its own.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import { mib } from '../../contracts/units.ts';
import { hostStateDirectory } from '../../lab/compose.ts';
import { meetGuest } from '../../lab/bench/measure.ts';
import { commandIn, labVariable } from '../../lab/processes.ts';
import { projectRoot } from '../../lab/guest-image.ts';
import { connectTemporal } from '../../payloads/temporal-connection.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { MoveStage, StageGuest, stageMsMax, until } from '../support/move-stage.ts';

const novacron = join(projectRoot, 'cli/main.ts');
const novacronHost = join(projectRoot, 'runners/host/local-cli.ts');
const controlAddress = '198.18.0.1';

interface Said {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

describeInLab('the command line in the lab', () => {
  let stage: MoveStage;
  let guest: StageGuest;
  const vm = vmName('spoken');

  const run = (
    script: string, args: readonly string[],
    options: { readonly namespace?: string; readonly input?: string } = {},
  ): Promise<Said> => new Promise((resolve, reject) => {
    const [program = '', ...rest] = commandIn(
      options.namespace ?? null, [process.execPath, script, ...args]);
    const child = spawn(program, rest, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, NOVACRON_CONFIG: stage.services.operatorConfigPath,
        [labVariable]: stage.lab.id },
    });
    let [out, err] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input ?? '');
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, out, err }));
  });
  /** Runs `novacron … --json`; answers exit code and the object on the last line. */
  const ask = async (...args: string[]): Promise<Record<string, unknown>> => {
    const { code, out, err } = await run(novacron, [...args, '--json']);
    const last = out.trim().split('\n').at(-1) ?? '';
    if (last === '') throw new Error(`nothing on stdout: ${err}`);
    const answer = JSON.parse(last) as Record<string, unknown>;
    expect(answer['exitCode']).toBe(code);
    return answer;
  };

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 3 });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it('makes a VM from a spec file, and refuses a wrong one by its field', async () => {
    const spec = stage.spec({ name: vm, octet: 130, memoryMib: 192, dataMib: 32 });
    const file = join(stage.lab.directories.data, 'spoken.json');
    writeFileSync(file, JSON.stringify({ ...spec, memoryBytes: 5 }));
    const wrong = await run(novacron, ['vm', 'create', '--spec', file, '--host', 'h1']);
    expect(wrong.code).toBe(2);
    expect(wrong.err).toContain('memoryBytes');
    writeFileSync(file, JSON.stringify(spec));
    expect(await ask('vm', 'create', '--spec', file, '--host', 'h1')).toMatchObject({
      ok: true, exitCode: 0 });
    const outside = await meetGuest(stage.lab, '198.18.1.130');
    guest = new StageGuest({ stage, vm, address: '198.18.1.130', outside });
    writeFileSync(file, JSON.stringify({ ...spec, memoryBytes: 256 * mib }));
    const other = await ask('vm', 'create', '--spec', file, '--host', 'h1');
    expect(other, 'another VM of that name').toMatchObject({
      exitCode: 3, failure: { code: 'vm/exists' } });
    expect(await ask('host', 'list')).toMatchObject({
      hosts: [{ host: 'h1', vmCount: 1 }, { host: 'h2', vmCount: 0 }, { host: 'h3' }] });
  });

  it('moves it and watches: percent never falls, the parts are the downtime', async () => {
    const before = await guest.begin();
    const watched = run(novacron, ['migrate', vm, '--to', 'h2', '--watch', '--json',
      '--bandwidth', '8MB', '--post-copy', 'when-needed', '--request', 'watched']);
    const migration = 'migrate/spoken/watched' as Parameters<MoveStage['view']>[0];
    const etas: { atMs: number; etaMs: number; percent: number }[] = [];
    let ended = false;
    const ends = watched.then(() => { ended = true; });
    while (!ended) {
      const view = await stage.view(migration).catch(() => null);
      const { status } = view ?? {};
      if (status !== undefined && status.outcome === null) {
        const etaMs = status.progress?.etaMs;
        if (typeof etaMs === 'number' && status.progress?.phase === 'memory') {
          etas.push({ atMs: Date.now(), etaMs, percent: status.percent });
        }
      }
      await Promise.race([ends, sleep(250)]);
    }
    const endedAtMs = Date.now();
    const { code, out, err } = await watched;
    expect(code, err).toBe(0);
    const summary = JSON.parse(out.trim().split('\n').at(-1) ?? '') as Record<string, unknown>;
    expect(summary).toMatchObject({ outcome: 'completed', exitCode: 0 });
    const shown = [...err.matchAll(/(\d+(?:\.\d+)?) ?%/g)].map((match) => Number(match[1]));
    expect(shown.length).toBeGreaterThan(2);
    expect(shown).toEqual(shown.toSorted((a, b) => a - b));
    const parts = Object.values(
      summary['downtimePartsMs'] as Record<string, number>).reduce((sum, part) => sum + part, 0);
    expect(parts).toBeCloseTo(summary['downtimeMs'] as number, 1);
    const first = etas.find(({ percent }) => percent >= 20);
    if (first === undefined) throw new Error('no estimate after 20 %');
    const realMs = endedAtMs - first.atMs;
    console.info(`ETA at ${first.percent.toFixed(0)} %: ${first.etaMs.toFixed(0)} ms, it took `
      + `${realMs} ms (${((first.etaMs / realMs - 1) * 100).toFixed(0)} %)`);
    // The workflow's last steps and heartbeats of a loaded machine are in it as well.
    expect(Math.abs(first.etaMs - realMs)).toBeLessThan(realMs * 0.2 + 2_500);
    await guest.expectAt(stage.lab.host(2), before, 1);
  });

  it('is read in Temporal\'s UI, though Temporal itself can not read it', async () => {
    const { temporal, uiUrl, codecUrl } = stage.services;
    if (uiUrl === null || codecUrl === null) throw new Error('the lab has no UI');
    const settings = await (await fetch(`${uiUrl}/api/v1/settings`)).json() as
      { Codec: { Endpoint: string } };
    expect(settings.Codec.Endpoint).toBe(codecUrl);
    // As the UI does it: the workflow is asked to tell of itself, the codec endpoint to read that.
    const { connection } = await connectTemporal(temporal, null);
    const { queryResult } = await connection.workflowService.queryWorkflow({
      namespace: temporal.namespace, execution: { workflowId: 'migrate/spoken/watched' },
      query: { queryType: '__temporal_workflow_metadata' },
    });
    await connection.close();
    const base64 = (bytes?: Uint8Array | null): string =>
      Buffer.from(bytes ?? []).toString('base64');
    const payloads = (queryResult?.payloads ?? []).map(({ metadata, data }) => ({
      metadata: Object.fromEntries(
        Object.entries(metadata ?? {}).map(([name, value]) => [name, base64(value)])),
      data: base64(data),
    }));
    const decode = (origin: string): Promise<Response> => fetch(`${codecUrl}/decode`, {
      method: 'POST', body: JSON.stringify({ payloads }),
      headers: { origin, 'content-type': 'application/json' },
    });
    const textOf = (data: string | undefined): string =>
      Buffer.from(data ?? '', 'base64').toString();
    expect(textOf(payloads[0]?.data)).not.toContain('spoken');
    const answer = await decode(uiUrl);
    expect(answer.headers.get('access-control-allow-origin')).toBe(uiUrl);
    const read = await answer.json() as { payloads: { data: string }[] };
    expect(textOf(read.payloads[0]?.data)).toMatch(/`spoken`: `h1` → `h2`.*\*\*completed\*\*/s);
    const foreign = await decode('http://elsewhere.example');
    expect(foreign.headers.get('access-control-allow-origin'), 'pages of others').toBeNull();
  });

  it('commands a move that runs, and says why it is not there yet', async () => {
    const before = await guest.begin();
    const started = await ask('migrate', vm, '--to', 'h1', '--bandwidth', '3MB',
      '--request', 'commanded', '--post-copy', 'never');
    expect(started).toMatchObject({ outcome: 'running', workflowId: 'migrate/spoken/commanded' });
    await stage.untilSent('migrate/spoken/commanded' as Parameters<MoveStage['view']>[0]);
    expect(await ask('migration', 'pause', vm)).toMatchObject({ done: ['pause'] });
    // The runner tells of it with its next progress, on a busy machine seconds later.
    await expect.poll(() => run(novacron, ['why', vm]), { timeout: 20_000, interval: 200 })
      .toMatchObject({ code: 0, out: expect.stringMatching(/pause|resume/i) as string });
    expect(await ask('migration', 'resume', vm)).toMatchObject({ done: ['resume'] });
    expect(await ask('migration', 'set', vm, '--bandwidth', '4MB', '--downtime-budget', '200ms'))
      .toMatchObject({ done: ['set-bandwidth', 'set-downtime-budget'],
        status: { policy: { downtimeBudgetMs: 200 } } });
    expect(await ask('migration', 'show', vm)).toMatchObject({ outcome: 'running' });
    const other = await ask('migrate', vm, '--to', 'h3', '--watch');
    expect(other).toMatchObject({ exitCode: 3, failure: { code: 'migration/open' } });
    const watched = ask('migration', 'watch', vm);
    await sleep(500);
    expect(await ask('migration', 'cancel', vm)).toMatchObject({ done: ['cancel'] });
    expect(await watched).toMatchObject({ outcome: 'cancelled', exitCode: 5 });
    expect(await ask('migration', 'list', '--vm', vm)).toMatchObject({ exitCode: 0 });
    await guest.expectAt(stage.lab.host(2), before, 0);
  });

  it('answers with exit codes that scripts can use', async () => {
    const [there, toNowhere, ofNobody, outside, why] = await Promise.all([
      ask('migrate', vm, '--to', 'h2', '--watch'),
      ask('migrate', vm, '--to', 'h9', '--watch'),
      ask('migrate', 'nobody', '--to', 'h1', '--watch'),
      run(novacron, ['migrate', '../etc', '--to', 'h1']),
      ask('why', 'nobody'),
    ]);
    expect(there).toMatchObject({ exitCode: 3 });
    expect(toNowhere).toMatchObject({ exitCode: 3, failure: { code: 'host/unknown' } });
    expect(ofNobody).toMatchObject({ exitCode: 3, failure: { code: 'vm/unknown' } });
    expect(outside.code).toBe(2);
    expect(why).toMatchObject({ exitCode: 3 });
  });

  it('shows the console, and the host answers by itself', async () => {
    const console_ = await run(novacron, ['vm', 'console', vm], { input: '\u001d' });
    expect(console_.code, console_.err).toBe(0);
    const socket = join(stage.lab.directories.runtime, 'h2', 'host.sock');
    const host = async (...args: string[]): Promise<Said> =>
      run(novacronHost, ['--socket', socket, '--json', ...args]);
    const listed = await host('list');
    expect(listed.code).toBe(0);
    expect(JSON.parse(listed.out)).toMatchObject({
      vms: [{ name: vm, runState: 'running', vcpuCount: 1, memoryBytes: 192 * mib }] });
    expect((await host('stop', 'nobody')).code).toBe(3);
    expect((await host('stop', '../x')).code).toBe(2);
    expect((await run(novacronHost, ['--socket', `${socket}.not`, 'list'])).code).toBe(6);
  });

  it('lets a machine join with a token, and moves a VM to it', async () => {
    const machine = stage.lab.host(3);
    await stage.process('host-h3').stop();
    const endpoint = `${controlAddress}:7444`;
    const serving = commandIn(stage.lab.plan.controlNamespace, [
      process.execPath, novacron, '--config', stage.services.operatorConfigPath, 'cert', 'serve',
      '--listen', endpoint]);
    await stage.lab.start({ name: 'enrolment', namespace: null, ready: 'none', command: serving });
    await until('the enrolment endpoint', () =>
      readFileSync(stage.lab.logPath('enrolment'), 'utf8').includes('endpoint on') ? true : null,
    20_000);
    const { token } = await ask('cert', 'join-token', 'newcomer', '--endpoint', endpoint,
      '--address', machine.managementAddress, '--address', machine.migrationAddress) as {
      token: string };
    const folder = join(stage.lab.directories.data, 'newcomer-tls');
    const joined = await run(novacron, ['host', 'join', '--token', '-', '--out', folder, '--json'],
      { namespace: machine.namespace, input: `${token}\n` });
    expect(joined.code, joined.err).toBe(0);
    const { tls, revokedPath } = JSON.parse(joined.out.trim().split('\n').at(-1) ?? '') as {
      tls: object; revokedPath: string };
    const twice = await run(novacron, ['host', 'join', '--token', token, '--out', folder, '--json'],
      { namespace: machine.namespace });
    expect(twice.code, 'a token is good once').not.toBe(0);
    const template = JSON.parse(readFileSync(
      join(stage.lab.directories.data, 'host-h3.json'), 'utf8')) as Record<string, unknown>;
    const newcomer = { ...machine, name: 'newcomer' };
    const config = join(stage.lab.directories.data, 'host-newcomer.json');
    const temporal = template['temporal'] as object;
    writeFileSync(config, JSON.stringify({
      ...template, name: 'newcomer', tls, revokedPath, temporal: { ...temporal, tls },
      stateDir: hostStateDirectory(stage.lab, newcomer),
      runtimeDir: join(stage.lab.directories.runtime, 'newcomer'),
      memoryDir: join(stage.lab.directories.memory, 'newcomer'),
    }));
    mkdirSync(join(stage.lab.directories.runtime, 'newcomer'), { recursive: true });
    await stage.lab.start({
      name: 'host-newcomer', namespace: machine.namespace, ready: 'line',
      command: [process.execPath, join(projectRoot, 'runners/host/main.ts'), '--config', config],
    });
    expect(await ask('host', 'show', 'newcomer')).toMatchObject({ exitCode: 0 });
    const before = await guest.begin();
    expect(await ask('migrate', vm, '--to', hostName('newcomer'), '--watch',
      '--post-copy', 'when-needed')).toMatchObject({ outcome: 'completed', exitCode: 0 });
    await stage.expectClean(stage.lab.host(2), vm);
    expect(await stage.entry(vm)).toMatchObject({
      owner: 'newcomer', phase: 'owned', epoch: before.entry.epoch + 1 });
    await guest.expectWhole(before);
    await guest.outside.close();
  });
});
