import { expect, test } from 'vitest';
import { signalInLog } from './guard-process.ts';

const start = (incarnation: string): string => `novacron: a VMM is started (${incarnation})\n`;
const told = 'qemu-system-x86_64: terminating on signal 15 from pid 4711 (<unknown process>)\n';

test.each<[string, string, number | null]>([
  ['a guest that shut down', start('a'), null],
  ['a VMM that was told to end', start('a') + told, 15],
  ['one by a process that nobody knows', `${start('a')}qemu: terminating on signal 1\n`, 1],
  ['a log whose beginning was cut off', told, 15],
  ['the end of an earlier VMM', start('a') + told + start('b'), null],
  ['nothing', '', null],
])('the signal of %s', (_what, log, signal) => {
  expect(signalInLog(log)).toBe(signal);
});
