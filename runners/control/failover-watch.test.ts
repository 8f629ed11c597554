import { describe, expect, it } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { HostView, VmEntry } from '../../contracts/ownership.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import { abandonedVms } from './failover-watch.ts';

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
