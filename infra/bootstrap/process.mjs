// Runs programs for the bootstrap: output to a log file, the last line as progress, and failures
// of the world (network, full disk) told apart from ours. Works on Node 20 with nothing installed.
import { spawn } from 'node:child_process';
import { accessSync, constants, createWriteStream, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** A failure that a person can act on; `message` says what and how in one sentence. */
export class SetupError extends Error {}

/** Lines of output that are kept to explain a failure. */
const tailLinesMax = 12;

const explanations = [
  [/No space left on device|ENOSPC/, 'the disk is full: free some space and run this again'],
  [new RegExp(['EAI_AGAIN', 'ENOTFOUND', 'Could not resolve', 'Temporary failure (in name )?resol',
    'no such host', 'ECONNREFUSED', 'Network is unreachable', 'dial tcp'].join('|')),
    'the package registry was not reached: check the network and run this again'],
  [/Could not get lock|is another process using it/,
    'another package manager is running: wait for it and run this again'],
];

const explain = (text) => explanations.find(([pattern]) => pattern.test(text))?.[1];

const children = new Set();
/** Ends what was started when the bootstrap itself is ended: nothing is left behind. */
export const endChildren = (signal) => {
  for (const child of children) {
    try { process.kill(-child.pid, signal); } catch { /* it has ended already */ }
  }
};

/** Full path of a program, or null. */
export const findProgram = (name, searchPath = process.env.PATH ?? '') => {
  for (const folder of searchPath.split(':')) {
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch { /* not in this folder */ }
  }
  return null;
};

/** Runs to the end and returns stdout; throws SetupError with the reason otherwise. */
export const runProgram = (command, args, options = {}) => new Promise((resolve, reject) => {
  const { cwd, env, log, onLine, timeoutMs } = options;
  if (log) mkdirSync(dirname(log), { recursive: true });
  const sink = log ? createWriteStream(log, { flags: 'a' }) : null;
  // A process group of its own, so that an interrupt takes the compilers with it.
  const child = spawn(command, args, {
    cwd, env, stdio: ['ignore', 'pipe', 'pipe'], detached: true,
  });
  children.add(child);
  const timer = timeoutMs && setTimeout(() => process.kill(-child.pid, 'SIGKILL'), timeoutMs);
  let stdout = '';
  const tail = [];
  const take = (chunk) => {
    sink?.write(chunk);
    for (const line of `${chunk}`.split(/[\r\n]+/).filter((text) => text.trim())) {
      tail.push(line);
      if (tail.length > tailLinesMax) tail.shift();
      onLine?.(line.trim());
    }
  };
  child.stdout.on('data', (chunk) => { stdout += chunk; take(chunk); });
  child.stderr.on('data', take);
  const finish = (error) => {
    clearTimeout(timer);
    children.delete(child);
    sink?.end();
    if (error) reject(error); else resolve(stdout);
  };
  child.on('error', (error) => {
    finish(new SetupError(`${command} could not be started: ${error.message}`));
  });
  child.on('close', (code, signal) => {
    if (code === 0) return finish();
    const text = tail.join('\n');
    const reason = explain(text) ?? `${command} ended with ${code ?? signal}`;
    finish(new SetupError(`${reason}${log ? ` (log: ${log})` : ''}\n${text}`));
  });
});
