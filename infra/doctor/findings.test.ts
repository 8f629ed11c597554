import { describe, expect, it } from 'vitest';
import { isOpenToVmms } from './accelerator.ts';
import { engineOf, findingsOf } from './findings.ts';
import type { Observations } from './findings.ts';
import { parseMachineTypes } from './observe.ts';

const good: Observations = {
  kernelRelease: '6.12.1', accelerator: { accelerator: 'kvm', reason: 'a guest booted' },
  emulationProblem: null,
  kernel: {
    userfaultfdCall: true, userfaultfdDevice: true, writeProtectAsync: true,
    minorFaultsOnSharedMemory: true, missingFaultsOnSharedMemory: true, dirtyTracking: true,
    reason: null,
  },
  qemuVersion: '10.0.13', machineTypes: ['pc-i440fx-10.0'], secondQemuVersion: '10.0.13',
  congestionControls: ['bbr', 'cubic'], rdmaDevices: [], hasCgroup2: true, bridgeSetProblem: null,
  programsMissing: [], isRoot: true, syncMsP50: 0.2, memoryBytes: 2 ** 34, memoryFreeBytes: 2 ** 33,
  diskFreeBytes: 2 ** 36, clockSource: 'tsc',
};
const stateOf = (seen: Observations, subject: string): string | undefined =>
  findingsOf(seen).find((finding) => finding.subject.startsWith(subject))?.state;

describe('what follows from observations', () => {
  it('is the direct engine where tracking works', () => {
    expect(engineOf(good)).toBe('direct');
    expect(findingsOf(good).some(({ state }) => state === 'missing')).toBe(false);
  });

  it('is no engine without tracking, probe or QEMU', () => {
    const kernel = good.kernel === null ? null : { ...good.kernel, dirtyTracking: false, reason: 'EPERM' };
    expect(engineOf({ ...good, kernel })).toBe('none');
    expect(engineOf({ ...good, kernel: null })).toBe('none');
    expect(engineOf({ ...good, qemuVersion: null })).toBe('none');
    expect(stateOf({ ...good, kernel }, 'dirty tracking')).toBe('missing');
  });

  it('is a package to install where a program is missing', () => {
    const bare = { ...good, programsMissing: ['busybox', 'qemu-img', 'qemu-nbd'] };
    const finding = findingsOf(bare).find(({ subject }) => subject === 'programs');
    expect(finding).toMatchObject({ state: 'missing', follows: 'apt-get install busybox qemu-utils' });
  });

  it('is TCG where KVM hangs, and nothing where TCG fails too', () => {
    const tcg = { ...good, accelerator: { accelerator: 'tcg' as const, reason: 'it hung' } };
    expect(stateOf(tcg, 'accelerator')).toBe('limited');
    expect(stateOf({ ...tcg, emulationProblem: 'no firmware' }, 'accelerator')).toBe('missing');
  });
});

it('versioned machine types are read from QEMU, newest first, without aliases', () => {
  expect(parseMachineTypes([
    'Supported machines are:', 'pc                   Standard PC (alias of pc-i440fx-7.2)',
    'pc-i440fx-7.2        Standard PC (default)', 'pc-i440fx-10.0       Standard PC',
    'pc-q35-6.1           Standard PC', 'microvm              microvm',
  ].join('\n'))).toEqual(['pc-q35-6.1', 'pc-i440fx-10.0', 'pc-i440fx-7.2']);
});

it('a KVM device that is open to its group is enough, one that is root\'s alone is not', () => {
  expect(isOpenToVmms({ mode: 0o020660, gid: 108 })).toBe(true);
  expect(isOpenToVmms({ mode: 0o020666, gid: 0 })).toBe(true);
  expect(isOpenToVmms({ mode: 0o020660, gid: 0 })).toBe(false);
  expect(isOpenToVmms({ mode: 0o020640, gid: 108 })).toBe(false);
});
