import { expect, test } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { exitText, RestartBudget, stoppedStep } from './lost-vms.ts';

const host = hostName('h1');
const entry = {
  owner: host, desired: 'running', lastStarted: 3, epoch: 3, phase: 'owned',
} as unknown as VmEntry;
const stopped = { entry, host, exit: null, endedHere: false, ranHere: true };
const killed = { code: null, signal: 9 };
const byGuest = { code: 0, signal: null };

test.each([
  ['the host lost its power', {}, 'start'],
  ['its VMM was killed', { exit: killed }, 'start'],
  ['its VMM was killed before this runner came', { exit: killed, ranHere: false }, 'start'],
  ['its VMM failed', { exit: { code: 1, signal: null } }, 'start'],
  ['a restart is recorded, its start failed', { entry: { ...entry, epoch: 4 } }, 'start'],
  ['its guest shut it down', { exit: byGuest }, 'record'],
  ['somebody sent its VMM SIGTERM', { exit: { ...byGuest, toldBySignal: 15 } }, 'start'],
  ['its host went down in order', { exit: { ...byGuest, toldBySignal: 15 }, ranHere: false },
    'start'],
  ['its guest had shut it down before', { exit: byGuest, ranHere: false }, 'leave'],
  ['an operator stopped it here', { exit: killed, endedHere: true }, 'record'],
  ['an operator had stopped it here', { exit: killed, endedHere: true, ranHere: false }, 'leave'],
  ['it is to be stopped', { entry: { ...entry, desired: 'stopped' as const } }, 'leave'],
  ['it never ran', { entry: { ...entry, lastStarted: 0 } }, 'leave'],
  ['it belongs to another host', { entry: { ...entry, owner: hostName('h2') } }, 'leave'],
  ['it is being moved', { entry: { ...entry, phase: 'preparing' as const } }, 'leave'],
  ['its move is committed here', { entry: { ...entry, phase: 'unsettled', epoch: 4 } as VmEntry },
    'leave'],
  ['its guest shut it down before the end of its move', {
    exit: byGuest, ranHere: false, entry: { ...entry, phase: 'unsettled' as const } }, 'record'],
  ['its move has started here', { entry: { ...entry, phase: 'unsettled' as const } }, 'start'],
])('a stopped VM when %s', (_what, change, step) => {
  expect(stoppedStep({ ...stopped, ...change })).toBe(step);
});

test('a VM that ends again and again is started five times in ten minutes', () => {
  const budget = new RestartBudget();
  const vm = vmName('web');
  const takes = (atMs: number[]): boolean[] => atMs.map((ms) => budget.take(vm, ms));
  expect(takes([0, 1, 2, 3, 4, 5, 599_999])).toEqual([true, true, true, true, true, false, false]);
  // Those that were refused do not count.
  expect(takes([600_000, 600_000])).toEqual([true, false]);
  expect(budget.take(vmName('db'), 5)).toBe(true);
  budget.forget(vm);
  expect(budget.take(vm, 600_000)).toBe(true);
});

test('the record says how it ended', () => {
  expect(exitText({ ...byGuest, toldBySignal: 15 }))
    .toBe('its VMM was told to end by signal 15');
  expect([null, killed, { code: 1, signal: null }].map(exitText)).toEqual([
    'its VMM is gone, with its guard or its host', 'its VMM was ended by signal 9',
    'its VMM ended with code 1']);
});
