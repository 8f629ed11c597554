/** The commands against a scripted world: what they ask for, answer, and exit with. */
import { describe, expect, it } from 'vitest';
import { CodedError, failureReport } from '../../contracts/failures.ts';
import type { HostName } from '../../contracts/identity.ts';
import { completedOf, entryOf, hostOf, migration, novacron, progressOf, scene, sharedDisk, spec,
  statusOf,
} from './fake-world.ts';

describe('migrate', () => {
  it('starts, links and answers at once without --watch', async () => {
    const on = scene();
    const { code, last, stdout } = await novacron(on, 'migrate', 'db', '--to', 'h2', '--json');
    expect(code).toBe(0);
    expect(last).toMatchObject({ version: 1, command: 'migrate', ok: true, exitCode: 0,
      outcome: 'running', workflowId: 'migrate/db/19700101T003320-abc123',
      workflowUrl: expect.stringContaining('migrate%2Fdb%2F') });
    expect(stdout.trim().split('\n').length).toBe(1);
    expect(on.started[0]).toMatchObject({ vm: 'db', target: 'h2',
      policy: { postCopy: 'never', downtimeBudgetMs: 100 } });
  });
  it('takes policy flags in the units people write', async () => {
    const on = scene({ statuses: [statusOf({ phase: 'preflight' })] });
    await novacron(on, 'migrate', 'db', '--to', 'h2', '--request', 'r1', '--bandwidth', '125MB/s',
      '--downtime-budget', '50', '--post-copy', 'never', '--deadline', '10m', '--lanes', '4');
    expect(on.started[0]).toMatchObject({ request: 'r1', policy: { downtimeBudgetMs: 50,
      bandwidthBytesPerSecond: 125_000_000, postCopy: 'never', deadlineMs: 600_000,
        laneCount: 4 } });
  });
  it('watches to the end: parts of the downtime sum to it', async () => {
    const on = scene({ outcome: completedOf(), statuses: [
      statusOf({ percent: 10, progress: progressOf({ bytesDone: 100, etaMs: 900 }) }),
      statusOf({ percent: 50, progress: progressOf({ bytesDone: 500, bytesOnWire: 400,
        etaMs: 500 }) })] });
    const { code, last, stderr } = await novacron(on, 'migrate', 'db', '--to', 'h2', '--watch',
      '--json');
    expect(code).toBe(0);
    expect(last).toMatchObject({ outcome: 'completed', engine: 'direct', rounds: 4,
      bytesOnWire: 123_456_789, downtimeMs: 13, epochBefore: 3, epochAfter: 4 });
    const parts = Object.values(last['downtimePartsMs'] as Record<string, number>);
    expect(parts.reduce((sum, part) => sum + part, 0)).toBeCloseTo(13, 6);
    expect(stderr).toMatch(/ETA 900 ms/);
  });
  it('shows what the named parts do not explain as a part of its own', async () => {
    const outcome = completedOf();
    if (outcome.kind !== 'completed') throw new Error('scene');
    const on = scene({ outcome: { ...outcome, figures: { ...outcome.figures, downtimeMs: 20 } } });
    const { last } = await novacron(on, 'migrate', 'db', '--to', 'h2', '--watch', '--json');
    expect(last['downtimePartsMs']).toMatchObject({ unexplainedMs: 7 });
  });
  it.each([
    ['refused by preflight', 'preflight/memory' as const, 'h1', 3],
    ['failed, the source goes on', 'link/lost' as const, 'h1', 4],
    ['failed, runs nowhere', 'vmm/gone' as const, null, 8],
  ])('%s: exit code', async (_name, code, runsOn, expected) => {
    const on = scene({ outcome: { version: 1, kind: 'failed', migration, vm: spec.name as never,
      source: 'h1' as HostName, target: 'h2' as HostName, runsOn: runsOn as HostName | null,
      failure: failureReport(code, 'h2: 1 GiB free'), compensationFailures: [] } });
    const run = await novacron(on, 'migrate', 'db', '--to', 'h2', '--watch', '--json');
    expect(run.code).toBe(expected);
    expect(run.last).toMatchObject({ ok: false, exitCode: expected, outcome: 'failed', runsOn,
      failure: { code, detail: 'h2: 1 GiB free' } });
  });
  it('exits with 5 when cancelled, 130 when looked away from', async () => {
    const cancelled = scene({ outcome: { version: 1, kind: 'cancelled', migration, by: 'ada',
      vm: spec.name as never, source: 'h1' as HostName, target: 'h2' as HostName,
      compensationFailures: [] } });
    expect((await novacron(cancelled, 'migrate', 'db', '--to', 'h2', '--watch')).code).toBe(5);
    const left = await novacron(scene({ interrupt: Promise.resolve() }),
      'migrate', 'db', '--to', 'h2', '--watch', '--json');
    expect(left.code).toBe(130);
    expect(left.last).toMatchObject({ outcome: 'running', ok: false, exitCode: 130 });
  });
  it('refuses a request id that stands for another target', async () => {
    const on = scene({ startedTarget: 'h3' });
    const { code, last } = await novacron(on, 'migrate', 'db', '--to', 'h2', '--request', 'r1',
      '--json');
    expect(code).toBe(3);
    expect(last).toMatchObject({ failure: { code: 'migration/open',
      detail: expect.stringContaining('h3') } });
  });
  it('goes on watching while Temporal is away for a moment', async () => {
    const away = Object.assign(new Error('14 UNAVAILABLE'), { code: 14 });
    const on = scene({ outcome: completedOf(), statuses: [statusOf(), away, away, statusOf()] });
    expect((await novacron(on, 'migrate', 'db', '--to', 'h2', '--watch')).code).toBe(0);
  });
});

describe('usage', () => {
  it.each([
    [['nonsense']], [['vm']], [['migrate', 'db']], [['migrate', 'DB', '--to', 'h2']],
    [['migrate', 'db', '--to', '../h2']], [['migrate', 'db', '--to', 'h2', '--bandwidth', 'fast']],
    [['migrate', 'db', '--to', 'h2', '--downtime-budget', '2h']],
    [['migrate', 'db', '--to', 'h2', '--lanes', '99']], [['migrate', 'db', '--to', 'h2',
      '--request', '../x']],
    [['migrate', 'db', '--to', 'h2', '--post-copy', 'maybe']],
    [['migration', 'set', 'migrate/db/r1']], [['migration', 'show', 'start/db/r1']],
    [['migration', 'list', '--limit', '0']], [['vm', 'delete', 'db']],
    [['vm', 'create', '--spec', '/none.json', '--host', 'h1']],
    [['vm', 'stop', 'db', '--grace', 'soon']], [['why', 'a b']], [['completion', 'tcsh']],
  ])('%j exits with 2 and one JSON object, and asks for nothing', async (argv) => {
    const on = scene();
    const { code, last, stdout } = await novacron(on, ...argv, '--json');
    expect(code).toBe(2);
    expect(last).toMatchObject({ version: 1, ok: false, exitCode: 2,
      failure: { code: 'input/invalid', detail: expect.stringMatching(/./) } });
    expect(stdout.trim().split('\n').length).toBe(1);
    expect([...on.started, ...on.commands, ...on.proposals, ...on.lifecycleRequests]).toEqual([]);
  });
  it('shows help without failing', async () => {
    const { code, stdout } = await novacron(scene(), 'migrate', '--help');
    expect(code).toBe(0);
    expect(stdout).toMatch(/--downtime-budget/);
  });
});

describe('vm', () => {
  it('lists with state, and hides what a name or cause smuggles in', async () => {
    const on = scene({ entries: [entryOf({ cause: 'x\u001b[31m' }),
      entryOf({ vm: 'web' as never, lastStarted: 2 })] });
    const { last } = await novacron(on, 'vm', 'list', '--json');
    expect(last['vms']).toMatchObject([{ vm: 'db', state: 'running', host: 'h1' },
      { vm: 'web', state: 'starting' }]);
    const shown = await novacron(on, 'vm', 'show', 'db');
    expect(shown.stdout).not.toContain('\u001b');
    expect(shown.stdout).toMatch(/belongs to h1 and runs there/);
  });
  it('says that a VM is unknown', async () => {
    const { code, last } = await novacron(scene(), 'vm', 'show', 'ghost', '--json');
    expect(code).toBe(3);
    expect(last).toMatchObject({ failure: { code: 'vm/unknown', detail: 'ghost' } });
  });
  it('creates from a spec and names the field that is wrong', async () => {
    const on = scene({ files: { '/good.json': JSON.stringify(spec),
      '/bad.json': JSON.stringify({ ...spec, cpuModel: 'host' }), '/broken.json': '{' },
    lifecycle: { version: 1, kind: 'completed', vm: spec.name as never, host: 'h1' as HostName,
      runState: 'running', epoch: 1, incarnation: null } });
    const made = await novacron(on, 'vm', 'create', '--spec', '/good.json', '--host', 'h1',
      '--json');
    expect(made.code).toBe(0);
    expect(made.last).toMatchObject({ step: 'create', kind: 'completed', host: 'h1' });
    expect(on.lifecycleRequests[0]).toMatchObject({ step: 'create', input: { start: true } });
    const bad = await novacron(on, 'vm', 'create', '--spec', '/bad.json', '--host', 'h1', '--json');
    expect(bad.last).toMatchObject({ exitCode: 2,
      failure: { detail: expect.stringContaining('cpuModel') } });
    const broken = await novacron(on, 'vm', 'create', '--spec', '/broken.json', '--host', 'h1');
    expect(broken.stderr).toMatch(/broken\.json: not JSON/);
  });
  it('passes the failure of a step on with its exit code', async () => {
    const on = scene({ lifecycle: { version: 1, kind: 'failed', vm: spec.name as never, host: null,
      failure: failureReport('migration/open', migration), compensationFailures: [] } });
    const { code, last } = await novacron(on, 'vm', 'stop', 'db', '--grace', '5s', '--json');
    expect(code).toBe(3);
    expect(last).toMatchObject({ ok: false, failure: { code: 'migration/open' } });
    expect(on.lifecycleRequests[0]).toMatchObject({ step: 'stop', input: { graceMs: 5000 } });
  });
  it('tells where the console is when it is not here', async () => {
    const { code, stderr } = await novacron(scene(), 'vm', 'console', 'db');
    expect(code).toBe(3);
    expect(stderr).toMatch(/novacron-host console db/);
  });
});

describe('host', () => {
  it('lists, shows, cordons', async () => {
    const on = scene();
    const { last } = await novacron(on, 'host', 'list', '--json');
    expect(last['hosts']).toMatchObject([{ host: 'h1', vmCount: 1, cordoned: false },
      { host: 'h2', vmCount: 0, cordoned: true }]);
    await novacron(on, 'host', 'uncordon', 'h2');
    expect(on.proposals).toEqual([{ kind: 'cordon-host', host: 'h2', cordoned: false }]);
    expect((await novacron(on, 'host', 'cordon', 'h9')).code).toBe(3);
  });
});

describe('migration', () => {
  const row = { migration, vm: 'db', source: 'h1', target: 'h2', phase: 'copy-memory',
    outcome: 'running', startedAtMs: 0, closedAtMs: null };
  it('takes the VM for its open move', async () => {
    const on = scene({ rows: [row] });
    const { last } = await novacron(on, 'migration', 'cancel', 'db', '--json');
    expect(on.commands).toEqual([{ kind: 'cancel', by: 'ada' }]);
    expect(last).toMatchObject({ workflowId: migration, done: ['cancel'] });
  });
  it('sets both limits in one go', async () => {
    const on = scene();
    await novacron(on, 'migration', 'set', migration, '--bandwidth', 'none', '--downtime-budget',
      '30ms');
    expect(on.commands).toEqual([{ kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 },
      { kind: 'set-downtime-budget', downtimeBudgetMs: 30 }]);
  });
  it.each(['pause', 'resume', 'post-copy'])('commands %s', async (word) => {
    const on = scene();
    expect((await novacron(on, 'migration', word, migration)).code).toBe(0);
    expect(on.commands[0]?.kind).toBe(word === 'post-copy' ? 'post-copy-now' : word);
  });
  it('shows an ended one with its summary, exit code 0: looking is not failing', async () => {
    const { code,
      last } = await novacron(scene({ statuses: [statusOf({ outcome: completedOf() })] }),
      'migration', 'show', migration, '--json');
    expect(code).toBe(0);
    expect(last).toMatchObject({ outcome: 'completed', downtimeMs: 13 });
  });
  it('says that it knows no such move', async () => {
    const { code, last } = await novacron(scene({ statuses: null }), 'migration', 'show', migration,
      '--json');
    expect(code).toBe(3);
    expect(last).toMatchObject({ failure: { code: 'migration/unknown' } });
  });
});

describe('why', () => {
  it('says what is waited for, on whom, since when, and the next command', async () => {
    const on = scene({ entries: [entryOf({ phase: 'preparing', migration,
      target: 'h2' as HostName })],
      statuses: [statusOf({ waitingFor: { what: 'the memory of db', sinceMs: 1_990_000 },
        progress: progressOf({ convergence: 'rounds still shrink' }) })] });
    const { code, stdout } = await novacron(on, 'why', 'db');
    expect(code).toBe(0);
    expect(stdout).toMatch(/waits for the memory of db, for 10\.0 s/);
    expect(stdout).toMatch(/because: convergence: rounds still shrink/);
    expect(stdout).toMatch(/next: novacron migration watch migrate\/db\/r1/);
  });
  it('answers from the ledger while Temporal is away, and says so', async () => {
    const on = scene({ entries: [entryOf({ phase: 'unsettled', migration, lastStarted: 2 })],
      temporalFails: new CodedError('temporal/unreachable', '127.0.0.1:7233') });
    const { code, stdout } = await novacron(on, 'why', 'db');
    expect(code).toBe(6);
    expect(stdout).toMatch(/waits for its first instruction from the runner of h1/);
    expect(stdout).toMatch(/temporal\/unreachable: 127\.0\.0\.1:7233/);
  });
  it('knows a paused move waits for its operator', async () => {
    const on = scene({ statuses: [statusOf({ progress: progressOf({ paused: true }) })] });
    const { last } = await novacron(on, 'why', migration, '--json');
    expect(last).toMatchObject({ on: 'you',
      nextCommand: `novacron migration resume ${migration}` });
  });
  it.each([
    ['none' as const, /no lease binds it: it may still run there/],
    ['automatic' as const, /its lease is over: .* its guard has paused it there/],
  ])('says that a VM (failover %s) waits for a host that is gone', async (failover, word) => {
    const on = scene({
      entries: [entryOf({ spec: { ...spec, failover } })],
      hosts: [hostOf('h1', { silentForMs: 90_000 }), hostOf('h2')],
    });
    const { code, stdout } = await novacron(on, 'why', 'db');
    expect(code).toBe(0);
    expect(stdout).toMatch(/waits for its host to come back from h1, for 1 min 30 s/);
    expect(stdout).toMatch(/since 1970-01-01T00:31:50/);
    expect(stdout).toMatch(/local to h1: no other host can start it/);
    expect(stdout).toMatch(word);
    expect(stdout).toMatch(/next: novacron host show h1/);
    const shown = await novacron(on, 'vm', 'show', 'db');
    expect(shown.stdout).toMatch(/waits for its host to come back from h1/);
    const { last } = await novacron(on, 'vm', 'list', '--json');
    expect(last['vms']).toMatchObject([{ vm: 'db', state: 'host-silent' }]);
    expect((await novacron(on, 'host', 'list')).stdout).toMatch(/h1 +open, silent/);
    expect((await novacron(on, 'host', 'show', 'h1')).stdout)
      .toMatch(/not been heard from for .*systemctl status novacron-runner/);
  });
  it.each([
    ['automatic' as const, /given to another host by itself/, /next: novacron failover db$/m],
    ['none' as const, /no lease binds it/, /next: novacron failover db --fence /],
  ])('says that a VM on shared volumes (failover %s) can start elsewhere', async (
    failover, because, next) => {
    const shared = { ...spec, failover, disks: [sharedDisk] };
    const on = scene({
      entries: [entryOf({ spec: shared })], hosts: [hostOf('h1', { silentForMs: 90_000 })],
    });
    const { stdout } = await novacron(on, 'why', 'db');
    expect(stdout).toMatch(because);
    expect(stdout).toMatch(next);
    expect((await novacron(on, 'vm', 'show', 'db')).stdout).not.toMatch(/come back/);
  });
  it('fails over what is on shared volumes, and says what the rest waits for', async () => {
    const local = await novacron(scene({ entries: [entryOf()] }), 'failover', 'db', '--json');
    expect(local.last).toMatchObject({ ok: false, failure: {
      code: 'preflight/local-disk', detail: 'db waits for h1 to come back' } });
    const on = scene({
      entries: [entryOf({ spec: { ...spec, disks: [sharedDisk] } })],
      lifecycle: { version: 1, kind: 'completed', vm: spec.name as never, host: 'h2' as HostName,
        runState: 'running', epoch: 4, incarnation: null },
    });
    const { code } = await novacron(on, 'failover', 'db', '--to', 'h2', '--fence', 'it burns',
      '--json');
    expect(code).toBe(0);
    expect(on.lifecycleRequests).toEqual([{ step: 'failover', input: {
      version: 1, vm: 'db', epoch: 3, request: 'e3', to: 'h2', fenceProof: 'it burns' } }]);
  });
  it('moves a VM back whose host is back, and not before', async () => {
    const entries = [entryOf({ owner: 'h2' as HostName, previous: 'h1' as HostName })];
    const back = scene({ entries, hosts: [hostOf('h1'), hostOf('h2')] });
    const asked = ['failover', 'db', '--revert'];
    const { code } = await novacron(back, ...asked, '--request', 'r7', '--json');
    expect(code).toBe(0);
    expect(back.started).toMatchObject([{ vm: 'db', target: 'h1', request: 'r7' }]);
    expect(back.lifecycleRequests).toEqual([]);
    const refusals = [
      [scene({ entries, hosts: [hostOf('h1', { silentForMs: 90_000 })] }), [], 'host/unreachable'],
      [scene({ entries, hosts: [hostOf('h2')] }), [], 'host/unknown'],
      [scene({ entries: [entryOf({ previous: null })] }), [], 'host/unknown'],
      [back, ['--to', 'h2'], 'input/invalid'],
    ] as const;
    for (const [on, words, refusal] of refusals) {
      const { last } = await novacron(on, ...asked, ...words, '--json');
      expect(last).toMatchObject({ ok: false, failure: { code: refusal } });
    }
    expect(back.started).toHaveLength(1);
  });
  it('says that a VM whose VMM died waits for its start, and how it died', async () => {
    const cause = 'restart by host/h1: its VMM was ended by signal 9';
    const on = scene({ entries: [entryOf({ epoch: 5, lastStarted: 4, cause })],
      hosts: [hostOf('h1')] });
    for (const words of [['why', 'db'], ['vm', 'show', 'db']]) {
      const { stdout } = await novacron(on, ...words);
      expect(stdout).toMatch(/epoch 5, and has not started under it/);
      expect(stdout).toMatch(/last entry: restart by host\/h1: its VMM was ended by signal 9/);
    }
    expect((await novacron(on, 'vm', 'list')).stdout).toMatch(/db +starting/);
    expect((await novacron(on, 'host', 'list')).stdout).toMatch(/h1 +open +1 \(1 starting\)/);
    const { last, stdout } = await novacron(on, 'host', 'show', 'h1', '--json');
    expect(last).toMatchObject({ vms: ['db'], vmsStarting: ['db'] });
    expect(stdout).not.toBe('');
  });
  it('does not call a host gone whose runner is only being restarted', async () => {
    const on = scene({ hosts: [hostOf('h1', { silentForMs: 8_000 })] });
    expect((await novacron(on, 'why', 'db')).stdout).toMatch(/waits for nothing/);
    expect((await novacron(on, 'vm', 'show', 'db')).stdout).toMatch(/runs there/);
  });
  it('does not know what nobody knows', async () => {
    expect((await novacron(scene(), 'why', 'ghost')).code).toBe(3);
    expect((await novacron(scene({ statuses: null }), 'why', migration)).code).toBe(3);
  });
});

describe('failures of the surroundings', () => {
  it.each([
    ['temporal', { temporalFails: new CodedError('temporal/unreachable', 'x') }, ['migration',
      'list'], 6],
    ['ledger', { ledgerFails: new CodedError('ownership/unreachable', 'x') }, ['vm', 'list'], 6],
    ['role', { ledgerFails: new CodedError('ownership/role', 'x') }, ['host', 'list'], 7],
    ['revoked', { ledgerFails: new CodedError('certificate/revoked', 'x') }, ['host', 'list'], 7],
    ['a bug', { temporalFails: new Error('undefined is not a function') }, ['migration', 'list'],
      1],
  ])('%s', async (_name, more, argv, expected) => {
    const { code, last, stderr } = await novacron(scene(more), ...argv, '--json');
    expect(code).toBe(expected);
    expect(last).toMatchObject({ ok: false, exitCode: expected });
    expect(stderr).toMatch(/what to do: /);
  });
});

describe('children', () => {
  it('hands everything over and takes the exit code', async () => {
    const on = scene();
    const { code } = await novacron(on, 'bench', 'migrate', '--memory', '1G', '--runs', '3',
      '--json');
    expect(code).toBe(4);
    expect(on.programs).toEqual([{ script: 'lab/bench/main.ts',
      argv: ['migrate', '--memory', '1G', '--runs', '3', '--json'] }]);
    await novacron(on, 'demo', '--down', '--help');
    expect(on.programs[1]?.argv).toEqual(['--down', '--help']);
  });
});
