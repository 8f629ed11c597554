import { describe, expect, test } from 'vitest';
import { hostName, incarnation, vmName } from '../../contracts/identity.ts';
import type { HostFacts, RunningVm } from '../../contracts/runner.ts';
import { plainAddress, preflight, type TargetObservations } from './preflight.ts';

const vm: RunningVm = {
  version: 1, name: vmName('web'), host: hostName('h1'), runState: 'running',
  incarnation: incarnation('0'.repeat(32)), vmmPid: 4, qemuVersion: '7.2.22',
  machineType: 'pc-i440fx-7.2', cpuModel: 'qemu64', vcpuCount: 1, memoryBytes: 2 ** 30,
  disks: [{
    name: 'data', nodeName: 'disk-data', format: 'raw', sizeBytes: 2 ** 31, path: '/d.raw',
    buffered: true,
  }],
  nics: [{
    name: 'net0', macAddress: '52:54:00:00:00:01', address: '198.18.1.10/24', segment: 'lab',
  }],
  boot: { kind: 'kernel', kernel: '/k', initrd: null, commandLine: '' },
  failover: 'none', cpuFlags: ['sse2'], exactnessObstacles: [], balloon: false,
};
const target: HostFacts = {
  version: 1, name: 'h2', migrationAddress: '198.18.2.2', peerPort: 1, lanePort: 2,
  segments: ['lab'], accelerator: 'tcg', qemuVersion: '7.2.22', machineTypes: ['pc-i440fx-7.2'],
  kernelRelease: '6.12', memoryBytes: 8 * 2 ** 30, diskFreeBytes: 9 * 2 ** 30,
  cpuFlags: ['sse2', 'avx'], features: [],
};
const seen: TargetObservations = {
  memoryFreeBytes: 4 * 2 ** 30, diskFreeBytes: 9 * 2 ** 30, namesTaken: [], addressesAnswered: [],
  kernelObstacle: null, volumeObstacles: [],
};

describe('preflight', () => {
  test('accepts a target that has all', () => {
    expect(preflight(vm, target, seen)).toBeNull();
  });

  test.each([
    ['migration/same-host', { host: hostName('h2') }, {}, {}],
    ['vm/not-running', { runState: 'stopped' as const }, {}, {}],
    ['preflight/layout', { exactnessObstacles: ['disk data uses O_DIRECT'] }, {}, {}],
    ['preflight/kernel', {}, {}, { kernelObstacle: 'PAGEMAP_SCAN needs Linux 6.7' }],
    ['preflight/qemu', { machineType: 'pc-i440fx-10.0' }, {}, {}],
    ['preflight/machine', {}, { machineTypes: ['pc-q35-7.2'] }, {}],
    ['preflight/cpu', { cpuFlags: ['avx512f'] }, {}, {}],
    ['preflight/memory', {}, {}, { memoryFreeBytes: 1 << 30 }],
    ['preflight/disk', {}, {}, { diskFreeBytes: 2 * 2 ** 30 }],
    ['preflight/segment', {}, { segments: ['other'] }, {}],
    ['preflight/name-taken', {}, {}, { namesTaken: ['/dev/shm/web.ram'] }],
    ['preflight/address-taken', {}, {}, { addressesAnswered: ['198.18.1.10'] }],
  ])('refuses with %s and names what', (code, changedVm, changedTarget, changedSeen) => {
    const refusal = preflight(
      { ...vm, ...changedVm }, { ...target, ...changedTarget }, { ...seen, ...changedSeen },
    );
    expect(refusal?.code).toBe(code);
    expect(refusal?.detail).not.toBe('');
  });

  test('compares versions as numbers, not as text', () => {
    const newer = { ...target, qemuVersion: '10.0.13', machineTypes: ['pc-i440fx-9.2'] };
    expect(preflight({ ...vm, machineType: 'pc-i440fx-9.2' }, newer, seen)).toBeNull();
  });

  test('reads the address of a CIDR', () => {
    expect(plainAddress('198.18.1.10/24')).toBe('198.18.1.10');
    expect(plainAddress('nonsense')).toBeNull();
  });
});
