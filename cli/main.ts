#!/usr/bin/env node
/** The `novacron` program: binds the command tree to this process. Decides nothing. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { CodedError } from '../contracts/failures.ts';
import { attachConsole } from '../payloads/host-socket.ts';
import type { Backend } from './backend.ts';
import type { World } from './context.ts';
import type { ConfigPlaces } from './operator-config.ts';
import { runCommandLine } from './program.ts';

const projectDirectory = fileURLToPath(new URL('..', import.meta.url));

const sink = (stream: NodeJS.WriteStream): World['stdout'] => ({
  write: (text) => void stream.write(text),
  get columns() {
    return stream.isTTY ? stream.columns : null;
  },
});

/** Runs a script of the project under this Node; Ctrl-C reaches it through the terminal. */
async function runProgram(
  { script, argv }: { readonly script: string; readonly argv: readonly string[] },
): Promise<number> {
  const path = join(projectDirectory, script);
  if (!existsSync(path)) {
    throw new CodedError('input/invalid', `${path} is not part of this installation`);
  }
  const child = spawn(process.execPath, [path, ...argv], { stdio: 'inherit' });
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  child.once('error', reject);
  child.once('exit', (code, signal) => resolve(code ?? (signal === 'SIGINT' ? 130 : 1)));
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on('SIGTERM', forward);
  // The terminal sends SIGINT to the child as well; we only must not end before it.
  process.on('SIGINT', () => undefined);
  return promise;
}

async function joinConsole(
  { socketPath, vm }: Parameters<World['joinConsole']>[0],
): ReturnType<World['joinConsole']> {
  const { stdin, stdout } = process;
  if (stdin.isTTY) stdin.setRawMode(true);
  try {
    return await attachConsole({ socketPath, vmName: vm, input: stdin, output: stdout });
  } finally {
    if (stdin.isTTY) stdin.setRawMode(false);
    stdin.pause();
  }
}

/** Temporal's client takes half a second to load: only commands that need it wait for that. */
function lazyBackend(places: ConfigPlaces): Backend {
  let real: Promise<Backend> | null = null;
  const get = (): Promise<Backend> => real ??= import('./connected-backend.ts')
    .then(({ connectedBackend }) => connectedBackend(places));
  return {
    config: async () => (await get()).config(),
    workflows: async () => (await get()).workflows(),
    ledger: async () => (await get()).ledger(),
    close: async () => (await real)?.close(),
  };
}

const interruption = Promise.withResolvers<void>();
let interruptCount = 0;
function onInterrupt(): void {
  interruptCount += 1;
  interruption.resolve();
  // A second Ctrl-C: whatever still runs is not worth waiting for.
  if (interruptCount > 1) process.exit(130);
}

const world: World = {
  stdout: sink(process.stdout),
  stderr: sink(process.stderr),
  environment: process.env,
  workingDirectory: process.cwd(),
  projectDirectory,
  now: Date.now,
  sleep: (ms) => delay(ms),
  randomText: () => randomBytes(3).toString('hex'),
  // A getter: only what waits for it keeps Ctrl-C from ending the process at once.
  get interrupted() {
    process.off('SIGINT', onInterrupt).on('SIGINT', onInterrupt);
    return interruption.promise;
  },
  openBackend: lazyBackend,
  // Not by its path: standard input may be a socket, which can't be opened again.
  readTextFile: (path) => path === '/dev/stdin' ? text(process.stdin) : readFile(path, 'utf8'),
  runProgram,
  joinConsole,
};

const exitCode = await runCommandLine({ argv: process.argv.slice(2), world });
// Open polls of Temporal's client would keep the process; what was written is flushed first.
process.stdout.write('', () => process.stderr.write('', () => process.exit(exitCode)));
