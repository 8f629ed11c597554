/**
 * A guard just large enough for tests of the hypervisor layer: it is the VMM's parent, leaves
 * guard.json while it lives and exit.json once it is reaped. No leases, no userfaultfd, no socket.
 */
import { spawn } from 'node:child_process';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';

const args = process.argv.slice(2);
const daemon = args[0] === '--daemon';
if (!daemon) {
  const child = spawn(process.execPath, [process.argv[1], '--daemon', ...args], {
    detached: true, stdio: ['ignore', 'inherit', 'inherit'],
  });
  child.unref();
  process.exit(0);
}
const split = args.indexOf('--');
const option = (name) => args[args.indexOf(name) + 1];
const directory = option('--dir');
const startTime = (pid) => {
  const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[19]);
};
const write = (name, value) => {
  writeFileSync(`${directory}/${name}.new`, JSON.stringify(value));
  renameSync(`${directory}/${name}.new`, `${directory}/${name}`);
};
const [program, ...rest] = args.slice(split + 1);
const vmm = spawn(program, rest, {
  uid: Number(option('--uid')), gid: Number(option('--gid')),
  stdio: ['ignore', 'inherit', 'inherit'],
});
vmm.once('exit', (code, signal) => {
  const number = signal === 'SIGKILL' ? 9 : signal === null ? null : 15;
  write('exit.json', { version: 1, code, signal: number });
  process.exit(0);
});
write('guard.json', {
  version: 1, guardPid: process.pid, vmmPid: vmm.pid, guardStartTime: startTime(process.pid),
  vmmStartTime: startTime(vmm.pid), incarnation: option('--incarnation'),
});
