// `node infra/bootstrap/main.mjs [--json] [--then THING] [-- ARGUMENTS]`, THING one of
// demo, test, cluster, long, bench, faults, soak, models, ready
//
// Makes a fresh machine ready and then runs the next thing on Node 24. Runs on Node 20 or newer
// with nothing installed. Decides the order of the set-up; what a step does is in steps.mjs.
// Progress goes to stderr; with --json the last line on stdout is one object. Exit status: the
// next thing's own, 1 when the set-up failed, 130 when it was interrupted.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { constants } from 'node:os';
import { join, resolve } from 'node:path';
import { SetupError, endChildren } from './process.mjs';
import { Progress } from './progress.mjs';
import { Stamps, digestOf, takeLock } from './stamps.mjs';
import { stepsFor } from './steps.mjs';

const root = resolve(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '../..');
const cache = join(root, '.cache');

const nextThings = {
  demo: ['cli/main.ts', 'demo'],
  bench: ['cli/main.ts', 'bench'],
  faults: ['cli/main.ts', 'faults'],
  soak: ['cli/main.ts', 'soak'],
  test: ['infra/bootstrap/gate.mjs', 'test'],
  cluster: ['infra/bootstrap/gate.mjs', 'cluster'],
  long: ['infra/bootstrap/gate.mjs', 'long'],
  models: ['infra/bootstrap/gate.mjs', 'models'],
  ready: ['infra/bootstrap/gate.mjs', 'ready'],
};

const parseArguments = (words) => {
  const options = { then: null, json: false, rest: [] };
  while (words.length > 0) {
    const word = words.shift();
    if (word === '--') options.rest = words.splice(0);
    else if (word === '--json') options.json = true;
    else if (word === '--then') options.then = words.shift();
    else if (options.then) options.rest.push(word);
    else {
      throw new SetupError(`unknown word ${word}; usage: main.mjs [--json] [--then THING] [-- …]`);
    }
  }
  // `npm test -- X` and `--then test -- -- X` both mean X.
  if (options.rest[0] === '--') options.rest.shift();
  if (options.then !== null && !Object.hasOwn(nextThings, options.then)) {
    throw new SetupError(`--then takes one of ${Object.keys(nextThings).join(', ')}`);
  }
  return options;
};

const environment = () => {
  const folders = [join(root, 'node_modules/.bin'), join(cache, 'bin')];
  return { ...process.env, PATH: `${folders.join(':')}:${process.env.PATH}:/usr/sbin:/sbin` };
};

const runStep = async (step, { stamps, progress, env }) => {
  const started = Date.now();
  const digest = step.inputs ? digestOf({ root, ...step.inputs }) : null;
  const isMade = (step.outputs ?? []).every((path) => existsSync(join(root, path)));
  const log = join(cache, 'log', `${step.name.replaceAll(/[^A-Za-z0-9]+/g, '-')}.log`);
  const stamp = step.name.replaceAll(/[^A-Za-z0-9]+/g, '-');
  let outcome = 'cached';
  if (digest === null || !isMade || !stamps.holds(stamp, digest)) {
    progress.start(step.name);
    try {
      const onLine = (line) => progress.detail(step.name, line);
      outcome = await step.run({ root, cache, env, log, onLine }) ?? 'done';
    } catch (error) {
      progress.finish(step.name, 'failed', Date.now() - started);
      throw error;
    }
    if (digest !== null) stamps.set(stamp, digest);
  }
  const ms = Date.now() - started;
  progress.finish(step.name, outcome, ms);
  return { name: step.name, outcome, ms };
};

/** Starts each step as soon as what it waits for is done; the first failure stops new ones. */
const runSteps = async (steps, context) => {
  const done = new Map();
  let failure = null;
  for (const step of steps) {
    const before = step.after.map((name) => done.get(name));
    done.set(step.name, Promise.all(before).then((earlier) => {
      if (failure || earlier.includes(null)) return null;
      return runStep(step, context).catch((error) => {
        failure ??= error;
        // What else runs would only be waited for.
        endChildren('SIGTERM');
        return null;
      });
    }));
  }
  const results = await Promise.all(done.values());
  if (failure) throw failure;
  return results;
};

const setUp = async (options) => {
  const started = Date.now();
  mkdirSync(cache, { recursive: true });
  const progress = new Progress();
  const release = await takeLock(join(cache, 'bootstrap.lock'), (pid) => {
    progress.note(`  … another set-up (process ${pid}) is running; waiting for it`);
  });
  process.once('exit', release);
  try {
    const context = { stamps: new Stamps(join(cache, 'stamps')), progress, env: environment() };
    const steps = await runSteps(stepsFor({ purpose: options.then, root }), context);
    const ms = Date.now() - started;
    progress.note(`  set up in ${(ms / 1000).toFixed(1)} s`);
    return { ready: true, ms, steps };
  } finally {
    progress.close();
    release();
  }
};

const runNext = (options) => new Promise((done) => {
  const node = join(root, 'node_modules/.bin/node');
  const [program, ...words] = nextThings[options.then];
  const given = [...words, ...options.rest, ...(options.json ? ['--json'] : [])];
  const child = spawn(node, [join(root, program), ...given], {
    stdio: 'inherit', cwd: root,
    // Dozens of processes of ours start on one machine: compiled code is half of their start.
    env: { ...environment(), NODE_COMPILE_CACHE: join(cache, 'compiled') },
  });
  const pass = (signal) => child.kill(signal);
  for (const signal of ['SIGTERM', 'SIGHUP']) process.on(signal, pass);
  // The terminal sends an interrupt to both; the child decides what it means.
  process.on('SIGINT', () => undefined);
  child.on('close', (code, signal) => done(code ?? 128 + constants.signals[signal]));
  child.on('error', (error) => {
    process.stderr.write(`${error.message}\n`);
    done(1);
  });
});

const main = async () => {
  const options = parseArguments(process.argv.slice(2));
  const interrupted = (signal) => {
    endChildren('SIGTERM');
    process.stderr.write('\ninterrupted: run it again, it goes on where it stopped\n');
    process.exit(128 + constants.signals[signal]);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  for (const signal of signals) process.on(signal, interrupted);
  const result = await setUp(options);
  for (const signal of signals) process.off(signal, interrupted);
  if (options.then === null) {
    if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
    return 0;
  }
  return runNext(options);
};

try {
  process.exitCode = await main();
} catch (error) {
  const text = error instanceof SetupError ? error.message : error.stack;
  process.stderr.write(`\nset-up stopped: ${text}\n`);
  if (process.argv.includes('--json')) {
    process.stdout.write(`${JSON.stringify({ ready: false, message: error.message })}\n`);
  }
  process.exitCode = 1;
}
