/** Which layouts keep a VM from being moved exactly, and the reason that preflight gives. */
import { describe, expect, test } from 'vitest';
import { hostName, incarnation, vmName } from '../../contracts/identity.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import { mib } from '../../contracts/units.ts';
import { describeRunning } from './inspection.ts';
import type { VmmFacts } from './inspection.ts';

const spec: VmSpec = {
  version: 1, name: vmName('web'), vcpuCount: 1, memoryBytes: 256 * mib,
  machineType: 'pc-i440fx-7.2', cpuModel: 'qemu64', failover: 'none',
  disks: [{ name: 'data', format: 'raw', sizeBytes: mib, sourceImage: null, volume: 'local' }],
  nics: [{ name: 'eth0', macAddress: '52:54:00:00:00:01', address: '198.18.1.10/24',
    segment: 'lab' }],
  boot: { kind: 'kernel', kernel: '/k', initrd: null, commandLine: '' },
};
const node = (name: string, drv: string) => ({
  'node-name': name, drv, file: '/d.raw', ro: false,
  cache: { direct: false, writeback: true, 'no-flush': false },
  image: { filename: '/d.raw', 'virtual-size': mib },
});
const ram = {
  id: 'ram0', type: 'memory-backend-file', sizeBytes: 256 * mib, share: true, path: '/m/web.ram',
  hugePages: false,
};
const devices = [
  { id: 'blk-data', type: 'virtio-blk-pci' }, { id: 'nic-eth0', type: 'virtio-net-pci' },
];
const facts: VmmFacts = {
  status: 'running', machineType: 'pc-i440fx-7.2', cpuTypes: ['qemu64'], cpuFlags: [],
  backends: [ram], machineBackend: 'ram0',
  nodes: [node('disk-data', 'raw'), node('file-data', 'file')], devices,
  slots: { 'blk-data': 4, 'nic-eth0': 16 }, macs: {},
};
const obstaclesOf = (change: Partial<VmmFacts>): readonly string[] => describeRunning(
  { ...facts, ...change },
  {
    host: hostName('h1'), incarnation: incarnation('0'.repeat(32)), vmmPid: 4,
    qemuVersion: '7.2.22', spec,
  },
).exactnessObstacles;
const withDevice = (type: string): Partial<VmmFacts> =>
  ({ devices: [...devices, { id: 'x0', type }] });

describe('what a VMM is made of', () => {
  test('is moved when all of it is known', () => {
    expect(obstaclesOf({})).toEqual([]);
    expect(obstaclesOf({ cpuTypes: ['qemu64', 'qemu64', 'qemu64', 'qemu64'] })).toEqual([]);
    expect(obstaclesOf({ machineType: 'pc-q35-7.2' })).toEqual([]);
  });

  test.each<[string, Partial<VmmFacts>, string]>([
    ['a disk past the host\'s cache', {
      nodes: [node('disk-data', 'raw'), {
        ...node('file-data', 'file'), cache: { direct: true, writeback: true, 'no-flush': false },
      }],
    }, 'block node file-data uses O_DIRECT'],
    ['an image on another one', {
      nodes: [{
        ...node('disk-data', 'raw'),
        image: { filename: '/d.raw', 'virtual-size': mib, 'backing-filename': '/base' },
      }, node('file-data', 'file')],
    }, 'block node disk-data has a backing file'],
    ['a second RAM backend', { backends: [ram, { ...ram, id: 'ram1' }] },
      'memory ram1 is a second backend'],
    ['memory without a file', {
      backends: [{ ...ram, type: 'memory-backend-memfd', path: null }],
    }, 'memory ram0 is memory-backend-memfd, not a named file'],
    ['memory of its own', { backends: [{ ...ram, share: false }] },
      'memory ram0 is private to the VMM'],
    ['memory without a backend', { machineBackend: '' }, 'guest memory has no backend object'],
    ['huge pages', { backends: [{ ...ram, hugePages: true }] },
      'memory ram0 is of huge pages (hugetlbfs), never moved so far'],
    ['a balloon', withDevice('virtio-balloon-pci'),
      'device x0 (virtio-balloon-pci) is unknown to the target'],
    ['a device of the host', withDevice('vfio-pci'), 'device x0 (vfio-pci) writes memory unseen'],
    ['a disk served elsewhere', withDevice('vhost-user-blk-pci'),
      'device x0 (vhost-user-blk-pci) writes memory unseen'],
    ['memory that was plugged in', withDevice('pc-dimm'),
      'device x0 (pc-dimm) is memory of its own'],
    ['a device elsewhere', { slots: { ...facts.slots, 'blk-data': 9 } },
      'device blk-data sits at slot 9, not 4'],
  ])('%s is refused', (_name, change, reason) => {
    expect(obstaclesOf(change)).toContain(reason);
  });
});
