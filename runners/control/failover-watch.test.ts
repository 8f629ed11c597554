import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { HostView, VmEntry } from '../../contracts/ownership.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import type { LifecycleOutcome } from '../../contracts/vm-lifecycle.ts';
import { abandonedVms, watchForFailover } from './failover-watch.ts';

const shared: VmSpec['disks'][number] = {
  name: 'data', format: 'raw', sizeBytes: 1 << 20, sourceImage: null,
  volume: {
    kind: 'shared', name: 'data', server: { name: 'store', address: '198.18.0.3', port: 7500 },
  },
};
const local: VmSpec['disks'][number] = { ...shared, name: 'root', volume: 'local' };

const entry = (more: Partial<VmEntry> = {}, of: Partial<VmSpec> = {}): VmEntry => ({
  vm: vmName('db'), phase: 'owned', owner: hostName('h1'), desired: 'running', epoch: 3,
  spec: {
    disks: [shared], failover: 'automatic',
    boot: { kind: 'kernel', kernel: '/k', initrd: null, commandLine: '' }, ...of,
  },
  ...more,
}) as VmEntry;
const host = (name: string, silentForMs: number): HostView =>
  ({ facts: { name }, silentForMs }) as HostView;

const silent = [host('h1', timing.failoverSilentMsMin + 1), host('h2', 500)];

describe('VMs whose host has gone silent', () => {
  it('are those that another host can start', () => {
    expect(abandonedVms(silent, [entry()])).toHaveLength(1);
    expect(abandonedVms(silent, [entry({ phase: 'preparing' })])).toHaveLength(1);
  });

  it.each([
    ['its host is heard from', entry({ owner: hostName('h2') })],
    ['no lease binds it', entry({}, { failover: 'none' })],
    ['a disk is local', entry({}, { disks: [shared, local] })],
    ['it has no disk at all', entry({}, { disks: [] })],
    ['its firmware keeps variables on its host', entry({}, {
      boot: { kind: 'disk', firmware: 'uefi', cloudInitUserData: null } })],
    ['it is to be stopped', entry({ desired: 'stopped' })],
    ['it is deleted', entry({ phase: 'absent' })],
  ])('are left alone when %s', (_why, one) => {
    expect(abandonedVms(silent, [one])).toEqual([]);
  });

  it('are none of a host that is only slow', () => {
    const slow = [host('h1', timing.failoverSilentMsMin)];
    expect(abandonedVms(slow, [entry()])).toEqual([]);
  });
});

describe('a silent host', () => {
  beforeEach(() => { vi.useFakeTimers(); });
  afterEach(() => { vi.useRealTimers(); });

  /** Epochs that were asked for in `minutes`, each answered as `failover` says. */
  async function askedFor(
    minutes: number, failover: () => Promise<LifecycleOutcome>, one: () => VmEntry = () => entry(),
  ): Promise<readonly number[]> {
    const epochs: number[] = [];
    const watch = watchForFailover({
      ledger: { listHosts: async () => silent, listVms: async () => [one()] },
      failover: (asked) => {
        epochs.push(asked.epoch);
        return failover();
      },
      log: pino({ level: 'silent' }),
    });
    await vi.advanceTimersByTimeAsync(minutes * 60_000);
    watch.close();
    return epochs;
  }

  it('is asked about once while the run is open', async () => {
    expect(await askedFor(5, () => new Promise(() => {}))).toEqual([3]);
  });

  it('is asked about again, ever more seldom, when the run fails', async () => {
    const failed = { kind: 'failed' } as unknown as LifecycleOutcome;
    // 1, 2, 4, 8, 16 and 30 s apart.
    expect(await askedFor(1, async () => failed)).toHaveLength(6);
    expect(await askedFor(10, () => Promise.reject(new Error('no Temporal')))).toHaveLength(24);
  });

  it('is asked about at once under a new epoch', async () => {
    let epoch = 3;
    const rising = async (): Promise<LifecycleOutcome> => {
      epoch = 4;
      return new Promise(() => {});
    };
    expect(await askedFor(1, rising, () => entry({ epoch }))).toEqual([3, 4]);
  });
});
