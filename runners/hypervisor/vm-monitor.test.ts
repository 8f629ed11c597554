import { expect, test } from 'vitest';
import { runStateOf } from './vm-monitor.ts';

test.each([
  ['running', 'running'], ['inmigrate', 'incoming'], ['postmigrate', 'paused'],
  // A disk without room stops the VM; whoever looks after VMs that stand lets it go on.
  ['io-error', 'paused'], ['shutdown', 'stopped'], ['guest-panicked', 'failed'],
])('a VMM that says %s is %s', (status, state) => {
  expect(runStateOf(status)).toBe(state);
});
