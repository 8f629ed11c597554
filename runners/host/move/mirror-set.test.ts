/** The mirrors of a move against a VMM that only answers what it is told to. */
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { QmpClient } from '../../hypervisor/qmp/client.ts';
import { MirrorSet } from './mirror-set.ts';

interface Job {
  offset: number;
  ready: boolean;
}
const size = 1e9;

/** A VMM of version 10 with a job a disk; disks without a job have lost theirs. */
class ScriptedVmm {
  readonly jobs = new Map<string, Job>();
  readonly ended: { data: Record<string, unknown> }[] = [];
  readonly changed: string[] = [];
  readonly greeting = { version: '10.0.0', major: 10, minor: 0, outOfBand: true };
  readonly eventCount = 7;

  execute(command: string, options: { arguments?: Record<string, unknown> } = {}): Promise<unknown> {
    if (command === 'query-block-jobs') {
      return Promise.resolve([...this.jobs].map(([disk, { offset, ready }]) => ({
        'device': `mirror-${disk}`, 'type': 'mirror', 'status': ready ? 'ready' : 'running',
        'len': size, offset, ready, 'busy': true, 'paused': false, 'io-status': 'ok',
        'actively-synced': false,
      })));
    }
    if (command === 'query-named-block-nodes') return Promise.resolve([]);
    const name = String(options.arguments?.['device'] ?? options.arguments?.['id']);
    const disk = name.replace(/^(mirror|disk)-/, '');
    if (command === 'blockdev-mirror') this.jobs.set(disk, { offset: 0, ready: false });
    if (command === 'block-job-change') this.changed.push(disk);
    if (command === 'block-job-set-speed' && !this.jobs.has(disk)) {
      return Promise.reject(new Error('no such job'));
    }
    return Promise.resolve({});
  }
  seenSince(name: string, sequence: number): readonly { data: Record<string, unknown> }[] {
    return name === 'BLOCK_JOB_COMPLETED' && sequence === this.eventCount ? this.ended : [];
  }
  /** The job of a disk ends as QEMU ends one whose target answers with an error. */
  end(disk: string, error: string): void {
    this.jobs.delete(disk);
    this.ended.push({ data: { device: `mirror-${disk}`, error } });
  }
}

let vmm: ScriptedVmm;
const setOf = async (...disks: string[]): Promise<MirrorSet> => {
  const set = new MirrorSet({
    qmp: vmm as unknown as QmpClient, log: pino({ level: 'silent' }),
    disks: disks.map((name) => ({ name, sizeBytes: size })),
  });
  await set.start(disks.map((name) => `/run/${name}.sock`));
  return set;
};

beforeEach(() => {
  vmm = new ScriptedVmm();
  vi.useFakeTimers({ toFake: ['setTimeout', 'performance'] });
});
afterEach(() => { vi.useRealTimers(); });

test('each disk whose copy does not shrink is held back, and users are told of all of them', async () => {
  const set = await setOf('root', 'data');
  expect(set.progress()).toMatchObject({ mode: 'background', said: '' });
  const synchronised = set.synchronised();
  await vi.advanceTimersByTimeAsync(6_000);
  expect(vmm.changed.toSorted()).toEqual(['data', 'root']);
  expect(set.progress().mode).toBe('write-blocking');
  expect(set.progress().said).toMatch(/writes to (root, data|data, root) faster than the link/);
  for (const job of vmm.jobs.values()) Object.assign(job, { offset: size, ready: true });
  await vi.advanceTimersByTimeAsync(400);
  await synchronised;
  expect(vmm.changed, 'told once').toHaveLength(2);
});

test('the end of a copy is not slept through', async () => {
  const set = await setOf('data');
  const job = vmm.jobs.get('data');
  if (job === undefined) throw new Error('no job');
  job.offset = size - 1e6;
  const isSynchronised = vi.fn();
  void set.synchronised().then(isSynchronised);
  await vi.advanceTimersByTimeAsync(5);
  Object.assign(job, { offset: size, ready: true });
  await vi.advanceTimersByTimeAsync(25);
  expect(isSynchronised).toHaveBeenCalledOnce();
});

test.each([
  ['No space left on device', 'disk/full'],
  ['Input/output error', 'disk/mirror'],
])('a copy that ends with "%s" fails with %s', async (said, code) => {
  const set = await setOf('data');
  const synchronised = set.synchronised();
  synchronised.catch(() => undefined);
  await vi.advanceTimersByTimeAsync(300);
  vmm.end('data', said);
  await vi.advanceTimersByTimeAsync(300);
  await expect(synchronised).rejects.toMatchObject({ code, detail: expect.stringContaining(said) as string });
});

test('a target that got full after the copy is named when the mirror is needed again', async () => {
  const set = await setOf('data');
  vmm.end('data', 'No space left on device');
  await expect(set.tighten()).rejects.toMatchObject({ code: 'disk/full' });
});
