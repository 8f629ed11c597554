/** The host's local socket and `novacron-host`, as real processes talk to it. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Duplex, PassThrough, Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { pino } from 'pino';
import { CodedError } from '../../contracts/failures.ts';
import { vmName } from '../../contracts/identity.ts';
import { askHost, attachConsole } from '../../payloads/host-socket.ts';
import { serveLocalApi } from '../../runners/host/local-api.ts';
import type { LocalApi, LocalHostOperations } from '../../runners/host/local-api.ts';

const cli = new URL('../../runners/host/local-cli.ts', import.meta.url).pathname;
let dir: string;
let api: LocalApi;
const stopped: { vm: string; graceMs: number }[] = [];
const vms = [{ name: 'db', runState: 'running' as const, vmmPid: 41, incarnation: 'a'.repeat(32),
  memoryBytes: 1 << 30, vcpuCount: 2 }];

const operations: LocalHostOperations = {
  listVms: async () => vms,
  status: async () => ({ host: 'h1', pid: 40, startedAtMs: 0,
    checks: { temporal: 'no answer from 127.0.0.1:7233', ledger: 'ok' }, openMigrations: [] }),
  stopVm: async ({ vm, graceMs }) => {
    if (vm !== 'db') throw new CodedError('vm/unknown', vm);
    stopped.push({ vm, graceMs });
    return 'stopped';
  },
  // A guest that answers in capitals, and hangs up at "bye".
  openConsole: async () => new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      this.push(chunk.toString().toUpperCase());
      if (chunk.includes('bye')) this.push(null);
      done();
    },
  }),
};
const run = (...argv: string[]) => new Promise<{ code: number; stdout: string; stderr: string }>(
  (resolve) => {
    execFile(process.execPath, [cli, '--socket', api.socketPath, ...argv],
      (error, stdout, stderr) =>
        resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr }));
  });

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-local-'));
  api = await serveLocalApi(
    { socketPath: join(dir, 'local.sock'), operations, logger: pino({ level: 'silent' }) });
});
afterAll(async () => {
  await api.close();
  await rm(dir, { recursive: true });
});

describe('socket', () => {
  it('is for its owner alone, and a second runner does not take it over', async () => {
    expect((await stat(api.socketPath)).mode & 0o777).toBe(0o600);
    await expect(serveLocalApi({ socketPath: api.socketPath, operations,
      logger: pino({ level: 'silent' }) })).rejects.toThrow(/another runner answers/);
  });
  it('replaces what a dead runner left behind', async () => {
    const socketPath = join(dir, 'stale.sock');
    await writeFile(socketPath, '');
    const second = await serveLocalApi({ socketPath, operations,
      logger: pino({ level: 'silent' }) });
    expect((await askHost({ socketPath, request: { version: 1, op: 'list' } })).vms).toEqual(vms);
    await second.close();
  });
  it.each([
    ['garbage', Buffer.from([0, 255, 10])],
    ['unknown operation', Buffer.from('{"version":1,"op":"reboot"}\n')],
    ['hostile name', Buffer.from('{"version":1,"op":"stop","vm":"../../etc","graceMs":0}\n')],
  ])('answers %s with input/invalid', async (_name, bytes) => {
    const socket = connect(api.socketPath);
    socket.write(bytes);
    const answer = await new Promise<string>((resolve) => {
      let text = '';
      socket.on('data', (data) => { text += data.toString(); });
      socket.on('close', () => resolve(text));
    });
    expect(JSON.parse(answer)).toMatchObject({ ok: false, failure: { code: 'input/invalid' } });
  });
  it('cuts off a peer that sends without end', async () => {
    const socket = connect(api.socketPath);
    socket.on('error', () => {});
    const closed = new Promise((resolve) => { socket.on('close', resolve); });
    socket.write(Buffer.alloc(300 * 1024, 0x61));
    await closed;
  });
  it('joins a console both ways until the escape or the end of the VM', async () => {
    const input = new PassThrough();
    const output = new PassThrough();
    const ended = attachConsole(
      { socketPath: api.socketPath, vmName: vmName('db'), input, output });
    input.write('hello');
    const heard = await new Promise<Buffer>((resolve) => { output.once('data', resolve); });
    expect(heard.toString()).toBe('HELLO');
    input.write(Buffer.from([0x1d]));
    expect(await ended).toBe('escape');
    const second = attachConsole({ socketPath: api.socketPath, vmName: vmName('db'),
      input: Readable.from([Buffer.from('bye')]), output });
    expect(['vm-ended', 'input-ended']).toContain(await second);
  });
});

describe('novacron-host', () => {
  it('lists, tells its state, stops, in text and JSON', async () => {
    expect((await run('list')).stdout).toMatch(/^db {2}running {2}2 vCPU {2}1 GiB/);
    const status = await run('--json', 'status');
    expect(JSON.parse(status.stdout.trim().split('\n').at(-1) ?? '')).toMatchObject(
      { version: 1, ok: true, host: 'h1', checks: { temporal: 'no answer from 127.0.0.1:7233' } });
    expect((await run('stop', 'db', '--grace', '2.5')).code).toBe(0);
    expect(stopped).toEqual([{ vm: 'db', graceMs: 2500 }]);
  });
  it('uses exit codes: usage 2, refused 3, no runner 6', async () => {
    expect((await run('explode')).code).toBe(2);
    expect((await run('stop', 'DB/..')).code).toBe(2);
    expect((await run('stop', 'web')).code).toBe(3);
    const away = await run('--socket', join(dir, 'none.sock'), '--json', 'list');
    expect(away.code).toBe(6);
    expect(JSON.parse(away.stdout)).toMatchObject(
      { ok: false, exitCode: 6, failure: { code: 'host/unreachable' } });
  });
});
