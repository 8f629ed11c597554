import { expect, test } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { isLost, LostVms, nextLostStep } from './lost-vms.ts';

const host = hostName('h1');
const entry = {
  owner: host, desired: 'running', lastStarted: 3, epoch: 3, phase: 'owned',
} as unknown as VmEntry;
const stopped = { entry, host, exit: null, endedHere: false };

test.each([
  ['the host lost its power', {}, true],
  ['its VMM was killed', { exit: { code: null, signal: 9 } }, true],
  ['its VMM failed', { exit: { code: 1, signal: null } }, true],
  ['its guest shut it down', { exit: { code: 0, signal: null } }, false],
  ['an operator stopped it here', { exit: { code: null, signal: 9 }, endedHere: true }, false],
  ['it is to be stopped', { entry: { ...entry, desired: 'stopped' as const } }, false],
  ['it never ran', { entry: { ...entry, lastStarted: 0 } }, false],
  ['it belongs to another host', { entry: { ...entry, owner: hostName('h2') } }, false],
])('a stopped VM when %s', (_what, change, lost) => {
  expect(isLost({ ...stopped, ...change })).toBe(lost);
});

test('it is started only while the ledger gives it to this host and no move is open', () => {
  const step = (change: Partial<VmEntry> | null, isStopped = true) =>
    nextLostStep({ entry: change === null ? null : { ...entry, ...change }, host, isStopped });
  expect(step({})).toBe('start');
  expect(step({ phase: 'preparing' })).toBe('wait');
  expect(step({ phase: 'unsettled' })).toBe('wait');
  expect(step({ owner: hostName('h2') })).toBe('forget');
  expect(step({ desired: 'stopped' })).toBe('forget');
  expect(step({}, false)).toBe('forget');
  expect(step(null)).toBe('forget');
});

test('a start that fails again and again is given up', () => {
  const lost = new LostVms();
  const vm = vmName('web');
  lost.add(vm);
  const goesOn = Array.from({ length: 5 }, () => lost.failed(vm));
  expect(goesOn).toEqual([true, true, true, true, false]);
  expect(lost.list()).toEqual([]);
});
