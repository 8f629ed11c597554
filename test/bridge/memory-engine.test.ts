/** The addon through its wrapper: coded errors, closed handles, checked numbers, no hanging process. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CodedError } from '../../contracts/failures.ts';
import { mib } from '../../contracts/units.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { openMemoryEngine } from '../../runners/data-plane/memory-engine.ts';
import type { LaneTls, SourceOptions } from '../../runners/data-plane/sessions.ts';

const addon = fileURLToPath(
  new URL('../../native/generated/novacron.linux-x64-gnu.node', import.meta.url));
const lacking = existsSync(addon) ? null : 'the addon (npm run native)';
if (lacking !== null) console.warn(`the bridge's tests are skipped: ${lacking} is missing`);

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    return error instanceof CodedError ? error.code : `not coded: ${String(error)}`;
  }
  return 'no error';
}

async function codeOfPromise(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
  } catch (error) {
    return error instanceof CodedError ? error.code : `not coded: ${String(error)}`;
  }
  return 'no error';
}

describe.skipIf(lacking !== null)('memory engine through the bridge', () => {
  const dir = mkdtempSync(join(tmpdir(), 'nc-bridge-'));
  const memoryPath = join(dir, 'ram');
  let tls: readonly [LaneTls, LaneTls];

  beforeAll(async () => {
    const nowMs = Date.now();
    await createAuthority({ dir, nowMs });
    const issue = async (name: string): Promise<LaneTls> => {
      const identity = { role: 'host', name } as Parameters<typeof issueCertificate>[0]['identity'];
      return { ...await issueCertificate({ dir, identity, addresses: [], nowMs }), revokedSerials: [] };
    };
    tls = [await issue('h1'), await issue('h2')];
    writeFileSync(memoryPath, '');
    truncateSync(memoryPath, 16 * mib);
  });
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  const options = (port: number): SourceOptions => ({
    migration: 'migrate/vm/1', epoch: 1,
    target: { address: '127.0.0.1', port, identity: 'novacron://host/h2' },
    laneCount: 2, tls: tls[0], memoryPath, memoryBytes: 16 * mib, vmmPid: process.pid,
    deviceStateSocket: join(dir, 'ds'), disks: [], socketUid: null, bandwidthBytesPerSecond: 0,
    downtimeBudgetMs: 100, postCopy: false, balloon: true, deadlineMs: 1000,
    exactness: 'off', planted: null,
  });

  test('numbers are checked and files are looked at before anything starts', () => {
    const engine = openMemoryEngine();
    const wrong: readonly Partial<SourceOptions>[] = [
      { laneCount: 0 }, { laneCount: 17 }, { laneCount: 1.5 }, { memoryBytes: -1 }, { memoryBytes: 4097 },
      { memoryBytes: 32 * mib }, { memoryPath: join(dir, 'none') }, { epoch: Number.NaN },
      { vmmPid: 2 ** 40 }, { bandwidthBytesPerSecond: 0.5 }, { downtimeBudgetMs: Number.POSITIVE_INFINITY },
      { migration: '' }, { target: { address: 'nowhere', port: 1, identity: 'novacron://host/h2' } },
      { target: { address: '127.0.0.1', port: 70_000, identity: 'novacron://host/h2' } },
      { target: { address: '127.0.0.1', port: 1, identity: 'h2' } },
    ];
    for (const change of wrong) {
      expect([change, codeOf(() => engine.openSource({ ...options(1), ...change }))])
        .toEqual([change, 'input/invalid']);
    }
  });

  test('a closed handle throws a coded error, closing twice does nothing', async () => {
    const engine = openMemoryEngine();
    const session = engine.openSource(options(1));
    expect(session.snapshot()).toMatchObject({ state: 'open', percent: 0, etaMs: null, failure: null });
    expect(codeOf(() => session.postCopyNow())).toBe('input/invalid');
    await session.close();
    await session.close();
    expect(codeOf(() => session.snapshot())).toBe('internal');
    expect(await codeOfPromise(() => session.connect())).toBe('internal');
  });

  test('abort settles everybody who waits', async () => {
    const session = openMemoryEngine().openSource(options(1));
    const waiting = codeOfPromise(() => session.waitConverged());
    await session.abort();
    expect(await waiting).toBe('migration/cancelled');
    await session.close();
  });

  test('nobody at the other end, an unexpected move, a stranger', async () => {
    const engine = openMemoryEngine();
    const dead = engine.openSource(options(1));
    expect(await codeOfPromise(() => dead.connect())).toBe('link/lost');
    await dead.close();
    const listener = engine.openListener({ address: '127.0.0.1', port: 0, tls: tls[1] });
    const unexpected = engine.openSource(options(listener.port));
    expect(await codeOfPromise(() => unexpected.connect())).toBe('link/refused');
    await unexpected.close();
    const stranger = engine.openSource({
      ...options(listener.port),
      target: { address: '127.0.0.1', port: listener.port, identity: 'novacron://host/h3' },
    });
    expect(await codeOfPromise(() => stranger.connect())).toBe('link/refused');
    await stranger.close();
    await new Promise<void>((resolve) => {
      const socket = connect(listener.port, '127.0.0.1', () => socket.write('plain text\r\n\r\n'));
      socket.resume().on('close', () => resolve()).on('error', () => resolve());
    });
    await listener.close();
    expect(codeOf(() => listener.expect({
      migration: 'm', epoch: 1, sourceIdentity: 'novacron://host/h1', memoryPath, memoryBytes: 16 * mib,
      vmmPid: process.pid, deviceStateSocket: join(dir, 'in'), disks: [], postCopyAllowed: false,
      balloon: false, adopted: false, exactness: 'off', planted: null,
    }))).toBe('internal');
  });

  test('handles that are dropped do not keep a process alive', () => {
    const wrapper = new URL('../../runners/data-plane/memory-engine.ts', import.meta.url).href;
    const text = `
      const { openMemoryEngine } = await import(${JSON.stringify(wrapper)});
      const engine = openMemoryEngine();
      const listener = engine.openListener(${JSON.stringify({ address: '127.0.0.1', port: 0, tls: tls[1] })});
      engine.openSource({ ...${JSON.stringify(options(1))}, target: { address: '127.0.0.1', port: listener.port,
        identity: 'novacron://host/h2' } });
      console.log('done');`;
    const output = execFileSync(process.execPath, ['--input-type=module', '-e', text], {
      timeout: 15_000, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'],
    });
    expect(output.trim()).toBe('done');
  });
});
