import { mkdtemp, rm } from 'node:fs/promises';
import { globSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { faultPoints, faultSteps, isFaultPoint } from '../contracts/fault-points.ts';
import type { Identity } from '../contracts/identity.ts';
import { vmName } from '../contracts/identity.ts';
import { createAuthority, issueCertificate } from '../payloads/certificates.ts';
import type { TlsMaterial } from '../payloads/certificates.ts';
import { armFaultPoint } from '../payloads/fault-points-client.ts';
import { createRevocationList, openRevocationList } from '../payloads/revocation.ts';
import type { RevocationList } from '../payloads/revocation.ts';
import { FaultPoints } from './fault-points.ts';
import { serveFaultPoints } from './fault-points-server.ts';
import type { FaultServerOptions } from './fault-points-server.ts';

const vm = vmName('web');
const log = pino({ level: 'silent' });

describe('the list of fault points', () => {
  it('is the set of the steps that the runners put points around', () => {
    const root = join(import.meta.dirname, '..');
    const files = globSync('{runners,activities,payloads}/**/*.ts', { cwd: root })
      .filter((path) => !path.includes('.test.'));
    const found = new Set(files.flatMap((path) =>
      [...readFileSync(join(root, path), 'utf8').matchAll(/'((?:source|target|control)\/[a-z-]+)'/g)]
        .map(([, step]) => step ?? '')));
    expect([...found].toSorted()).toEqual(Object.keys(faultSteps).toSorted());
  });
  it('has a point before and one after each step', () => {
    expect(faultPoints).toHaveLength(2 * Object.keys(faultSteps).length);
    expect(isFaultPoint('source/stop/before')).toBe(true);
    expect(isFaultPoint('source/stop/during')).toBe(false);
  });
});

describe('FaultPoints', () => {
  it('holds the one VM at the armed point alone, until it is released', async () => {
    const points = new FaultPoints();
    const seen: string[] = [];
    points.arm('source/stop/after', vm, () => seen.push('reached'));
    await points.of('other')('source/stop', () => Promise.resolve(seen.push('other')));
    const held = points.of(vm)('source/stop', () => Promise.resolve(seen.push('work')))
      .then(() => seen.push('on'));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(seen).toEqual(['other', 'work', 'reached']);
    points.release('source/stop/after', vm);
    await held;
    expect(seen.at(-1)).toBe('on');
  });
  it('holds nobody longer than its limit', async () => {
    const points = new FaultPoints(20);
    points.arm('source/stop/before', vm, () => undefined);
    await points.of(vm)('source/stop', () => Promise.resolve());
  });
  it('has no point after a step that failed', async () => {
    const points = new FaultPoints();
    points.arm('source/stop/after', vm, () => expect.unreachable('it was reached'));
    await expect(points.of(vm)('source/stop', () => Promise.reject(new Error('no'))))
      .rejects.toThrow('no');
  });
});

describe('arming over the socket', () => {
  let dir: string;
  let revoked: RevocationList;
  const papers = new Map<string, TlsMaterial>();
  const issue = async (identity: Identity): Promise<void> => {
    papers.set(identity.role,
      await issueCertificate({ dir, identity, addresses: [], nowMs: Date.now() }));
  };
  const of = (role: string): TlsMaterial => {
    const material = papers.get(role);
    if (material === undefined) throw new Error(`no papers for ${role}`);
    return material;
  };
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'novacron-faults-'));
    await createAuthority({ dir, nowMs: Date.now() });
    await issue({ role: 'host', name: 'h1' });
    await issue({ role: 'lab', name: 'faults' });
    await issue({ role: 'operator', name: 'me' });
    await issue({ role: 'control', name: 'control' });
    const path = await createRevocationList({ dir, nowMs: Date.now() });
    revoked = openRevocationList({ path, caPath: of('host').caPath });
  });
  afterAll(() => rm(dir, { recursive: true }));
  const options = (points: FaultPoints): FaultServerOptions => ({
    socketPath: join(dir, 'faults.sock'), profile: 'lab', points, log,
    tls: { material: of('host'), revoked },
  });
  const place = (role: string) => ({
    socketPath: join(dir, 'faults.sock'), point: 'target/cont/before', vm,
    material: of(role), revoked,
  } as const);

  it('takes a lab certificate: tells when it is reached, releases', async () => {
    const points = new FaultPoints();
    const server = await serveFaultPoints(options(points));
    const armed = await armFaultPoint(place('lab'));
    let done = false;
    const work = points.of(vm)('target/cont', () => Promise.resolve()).then(() => { done = true; });
    expect(await armed.reached).toBe(true);
    expect(done).toBe(false);
    armed.release();
    await work;
    await server.close();
  });
  it('lets go when the one who armed it is gone', async () => {
    const points = new FaultPoints();
    const server = await serveFaultPoints(options(points));
    const armed = await armFaultPoint(place('lab'));
    const work = points.of(vm)('target/cont', () => Promise.resolve());
    expect(await armed.reached).toBe(true);
    await server.close();
    await work;
  });
  it.each(['operator', 'control', 'host'])('refuses a certificate of role %s', async (role) => {
    const points = new FaultPoints();
    const server = await serveFaultPoints(options(points));
    await expect(armFaultPoint(place(role))).rejects.toThrow(/link\/(refused|lost)/);
    await points.of(vm)('target/cont', () => Promise.resolve());
    await server.close();
  });
  it('is not served in the production profile', async () => {
    await expect(serveFaultPoints({ ...options(new FaultPoints()), profile: 'production' }))
      .rejects.toThrow(/fault points are for the lab/);
  });
});
