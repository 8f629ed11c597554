/** `novacron` as a process: exit codes, --json, completion in a real shell, a real ledger. */
import { execFile } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeProgram } from '../../cli/program.ts';
import { completionNodes } from '../../cli/completion.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { createRevocationList, openRevocationList, revokeCertificates,
} from '../../payloads/revocation.ts';
import { openLocalLedger } from '../../runners/ledger/local-ledger.ts';
import type { LocalLedger } from '../../runners/ledger/local-ledger.ts';
import { serveLedger } from '../../runners/ledger/server.ts';
import type { LedgerServer } from '../../runners/ledger/server.ts';
import { hostOf, spec } from './fake-world.ts';
import { hostName, vmName } from '../../contracts/identity.ts';

const main = new URL('../../cli/main.ts', import.meta.url).pathname;
/** A start of node takes 0.5 s here, ten times that on a machine with other work. */
const testMsMax = 120_000;
const silent = pino({ level: 'silent' });
let dir: string;
let ledger: LocalLedger;
let server: LedgerServer;
let config: string;

interface Run { code: number; stdout: string; stderr: string; last: Record<string, unknown> }
const run = (...argv: string[]): Promise<Run> => new Promise((resolve) => {
  execFile(process.execPath, [main, ...argv], {
    env: { PATH: process.env['PATH'], HOME: dir, NOVACRON_CONFIG: config },
  }, (error, stdout, stderr) => {
    let last: Record<string, unknown> = {};
    try {
      last = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>;
    } catch {
      // Text: the test looks at stdout itself.
    }
    resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr, last });
  });
});
const writeConfig = async (name: string, more: object = {}): Promise<string> => {
  const path = join(dir, name);
  await writeFile(path, JSON.stringify({ version: 1,
    temporal: { address: '127.0.0.1:1', namespace: 'default', tls: null, uiUrl: null },
    payloadKeysPath: null, ledger: { address: '127.0.0.1', port: server.port },
    tls: { certPath: 'operator-ada.pem', keyPath: 'operator-ada-key.pem', caPath: 'ca.pem' },
    certificatesDir: '.', hosts: {}, ...more }));
  return path;
};

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-cli-'));
  const nowMs = Date.now();
  await createAuthority({ dir, nowMs });
  const path = await createRevocationList({ dir, nowMs });
  const issue = (role: 'ledger' | 'operator' | 'codec', name: string) =>
    issueCertificate({ dir, identity: { role, name }, addresses: [], nowMs });
  const tls = await issue('ledger', 'l1');
  await issue('operator', 'ada');
  await issue('operator', 'eve');
  await issue('codec', 'c1');
  ledger = await openLocalLedger({ dir: null });
  server = await serveLedger({ core: ledger.core, address: '127.0.0.1', port: 0, tls,
    revoked: openRevocationList({ path, caPath: join(dir, 'ca.pem') }), logger: silent });
  await ledger.as({ role: 'host', name: 'h1' }).propose([
    { kind: 'join-host', facts: hostOf('h1').facts,
      publicKeyPem: generateKeyPairSync('ed25519').publicKey
        .export({ type: 'spki', format: 'pem' }).toString() }]);
  await ledger.as({ role: 'control', name: 'c' }).propose([
    { kind: 'create', vm: vmName('db'), host: hostName('h1'), spec }]);
  config = await writeConfig('operator.json');
}, testMsMax);
afterAll(async () => {
  await server.close();
  await ledger.close();
  await rm(dir, { recursive: true });
});

describe('against a real ledger', () => {
  it('lists what is there and changes what an operator may', async () => {
    const hosts = await run('host', 'list', '--json');
    expect(hosts).toMatchObject({ code: 0, last: { hosts: [{ host: 'h1', vmCount: 1 }] } });
    expect((await run('vm', 'list')).stdout).toMatch(/^VM .*\ndb .* h1 /);
    expect(await run('host', 'cordon', 'h1', '--json')).toMatchObject({ last: { changed: true } });
    expect(await run('host', 'cordon', 'h1', '--json')).toMatchObject({ last: { changed: false } });
    expect((await run('names', 'vms')).stdout.trim()).toBe('db');
  }, testMsMax);
  it('says from the ledger why, and that Temporal does not answer', async () => {
    const { code, stdout } = await run('why', 'db');
    expect(code).toBe(6);
    expect(stdout).toMatch(/db .*on h1|db belongs to h1/);
    expect(stdout).toMatch(/temporal\/unreachable: 127\.0\.0\.1:1/);
  }, testMsMax);
  it('is refused with a revoked certificate, a role that may not, and no ledger', async () => {
    await revokeCertificates({ dir, of: { identity: 'operator/eve' }, reason: 'left',
      nowMs: Date.now() });
    const eve = await writeConfig('eve.json', { tls: { certPath: 'operator-eve.pem',
      keyPath: 'operator-eve-key.pem', caPath: 'ca.pem' } });
    const refused = await run('vm', 'list', '--config', eve, '--json');
    expect(refused).toMatchObject({ code: 7, last: { failure: { code: 'certificate/revoked' } } });
    const codec = await writeConfig('codec.json', { tls: { certPath: 'codec-c1.pem',
      keyPath: 'codec-c1-key.pem', caPath: 'ca.pem' } });
    const wrongRole = await run('vm', 'list', '--config', codec);
    expect(wrongRole.code).toBe(6);
    expect(wrongRole.stderr).toMatch(/of another role/);
    const none = await writeConfig('none.json', { ledger: { address: '127.0.0.1', port: 1 } });
    expect(await run('vm', 'list', '--config', none, '--json')).toMatchObject(
      { code: 6, last: { failure: { code: 'ownership/unreachable' } } });
  }, testMsMax);
});

describe('as a process', () => {
  it.each([
    [['nope'], 2], [['vm', 'show', 'Ä'], 2], [['--help'], 0], [['migrate', '--help'], 0],
    [['vm', 'show', 'ghost'], 3], [['migrate', 'db', '--to', 'h2'], 6],
  ])('%j exits with %d', async (argv, code) => {
    expect((await run(...argv)).code).toBe(code);
  }, testMsMax);
  it('prints one JSON object as the last line, also when it fails', async () => {
    const { stdout, last, stderr } = await run('migrate', 'db', '--to', 'h2', '--json');
    expect(stdout.trim().split('\n').length).toBe(1);
    expect(last).toMatchObject({ version: 1, command: 'migrate', ok: false, exitCode: 6 });
    expect(stderr).toMatch(/what to do/);
  }, testMsMax);
  it('names file and field of a wrong configuration, and where one is looked for', async () => {
    const bad = await writeConfig('bad.json', { ledger: { address: '127.0.0.1', port: 'x' } });
    const { code, stderr } = await run('vm', 'list', '--config', bad);
    expect(code).toBe(2);
    expect(stderr).toMatch(/bad\.json: ledger\.port/);
  }, testMsMax);
  it('makes payload keys, keeps them, and rotates them', async () => {
    const path = join(dir, 'payload-keys.json');
    const made = await run('cert', 'payload-keys', path, '--json');
    expect(made.last).toMatchObject({ ok: true, path, keyId: expect.stringMatching(/^k/) });
    const { keyId } = made.last;
    expect((await run('cert', 'payload-keys', path, '--json')).last).toMatchObject({ keyId });
    const rotated = await run('cert', 'payload-keys', path, '--rotate', '--json');
    expect(rotated.last['keyId']).not.toBe(keyId);
    const { keys } = JSON.parse(await readFile(path, 'utf8')) as { keys: { id: string }[] };
    expect(keys.map(({ id }) => id)).toEqual([keyId, rotated.last['keyId']]);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
  }, testMsMax);
  it('works with certificates from nothing', async () => {
    const at = join(dir, 'fresh');
    expect(await run('cert', 'init', '--dir', at, '--json')).toMatchObject(
      { code: 0, last: { fingerprint: expect.stringMatching(/^[0-9a-f]{64}$/) } });
    const issued = await run('cert', 'issue', 'host/h9', '--dir', at, '--address', '198.18.2.19',
      '--address', 'h9.lab', '--json');
    expect(issued.last).toMatchObject({ identity: 'host/h9', addresses: ['198.18.2.19',
      'h9.lab'] });
    const rotated = await run('cert', 'rotate', 'host/h9', '--dir', at, '--json');
    expect(rotated.last['serial']).not.toBe(issued.last['serial']);
    await run('cert', 'revoke', String(issued.last['serial']), '--dir', at);
    const list = await run('cert', 'list', '--dir', at, '--json');
    const states = (list.last['certificates'] as { serial: string; state: string }[])
      .map(({ serial, state }) => [serial === rotated.last['serial'], state]);
    expect(states.toSorted()).toEqual([[false, 'revoked'], [true, 'valid']]);
    expect((await run('cert', 'issue', 'king/arthur', '--dir', at)).code).toBe(2);
    expect((await run('cert', 'revoke', 'ff', '--dir', at)).code).toBe(2);
  }, testMsMax);
});

describe('completion', () => {
  it('names every command in every shell', async () => {
    const paths = completionNodes(describeProgram()).map(({ path }) => path);
    expect(paths).toContain('migration set');
    expect(paths).not.toContain('names');
    for (const shell of ['bash', 'zsh', 'fish']) {
      const { stdout } = await run('completion', shell);
      for (const word of paths.flatMap((path) => path.split(' '))) expect(stdout).toContain(word);
    }
  }, testMsMax);
});
