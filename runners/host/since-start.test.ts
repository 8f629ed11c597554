import { expect, test } from 'vitest';
import { hostName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { fateOf } from './since-start.ts';

const host = hostName('h2');
const entry = {
  owner: host, phase: 'unsettled', epoch: 4, lastStarted: 4, desired: 'running',
} as unknown as VmEntry;

test.each<[string, Partial<VmEntry>, boolean, string]>([
  ['it runs', {}, true, 'runs'],
  ['it is settled and runs', { phase: 'owned' }, true, 'runs'],
  ['its VMM died', {}, false, 'undecided'],
  ['its VMM died after the settle', { phase: 'owned' }, false, 'undecided'],
  ['it was booted anew', { phase: 'owned', epoch: 5, lastStarted: 5 }, true, 'vm/memory-lost'],
  ['it will be booted anew', { phase: 'owned', epoch: 5 }, false, 'vm/memory-lost'],
  ['its guest shut it down', { desired: 'stopped' }, false, 'vm/stopped-itself'],
  ['its start was declined', { lastStarted: 3 }, false, 'migration/taken-back'],
  ['it went back', { owner: hostName('h1'), phase: 'owned', epoch: 5 }, false,
    'migration/taken-back'],
])('a VM after its start by a move: %s', (_what, change, hasVmm, fate) => {
  expect(fateOf({ entry: { ...entry, ...change }, host, epoch: 3, hasVmm })).toBe(fate);
});
