// The gate: `npm test`, `npm run ready`, `npm run test:cluster`, `npm run test:long` and
// `npm run models`, on Node 24, after the set-up.
//
// Types, lint, Rust's tests, unit tests, end-to-end tests; each runs even when an earlier one
// failed, so that one run tells all. Words given are file filters for vitest and leave out the
// rest (`npm test -- runners/ledger`). `npm test` runs the few files that failed once more, alone,
// and names those that then pass: each of them is a defect, and fails `npm run ready`, which
// runs nothing twice. Closes with what took long, the reasons of all skips, and one line
// `N passed, N failed, N skipped`; types and lint count as one check each.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
const reports = join(root, '.cache/reports');
/** Slowest tests that are listed. */
const slowestCount = 10;
/** More failed files than these are no accident, and are not run again. */
const secondTriesMax = 4;
/** The line that a test prints when something it needs is missing. */
const skipPattern = /\b(?:skipped:|are skipped|is skipped)/i;

const run = (command, args, cwd = root) => new Promise((done) => {
  const child = spawn(command, args, {
    cwd, stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, FORCE_COLOR: '0' },
  });
  let text = '';
  const take = (chunk) => {
    text += chunk;
    process.stdout.write(chunk);
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  child.on('error', (error) => done({ code: 1, text: `${text}\n${error.message}` }));
  child.on('close', (code) => done({ code: code ?? 1, text }));
});

const check = async (command, args) => {
  const { code } = await run(command, args);
  const failed = code === 0 ? 0 : 1;
  return { passed: 1 - failed, failed, skipped: 0, tests: [], reasons: [] };
};

/** Runs what failed once more, alone, and books what passes then apart. */
const withSecondTry = async (first, runAgain) => {
  const { broken } = first;
  if (first.failed === 0 || broken.length === 0 || broken.length > secondTriesMax) return first;
  console.log(`\n── once more, alone: ${broken.join(', ')}`);
  const second = await runAgain(broken);
  const failed = Math.min(second.failed, first.failed);
  const repaired = first.failed - failed;
  return {
    ...first, failed, passed: first.passed + repaired,
    unsteady: repaired > 0 ? first.failures.filter((name) => !second.failures.includes(name)) : [],
  };
};

const reasonsIn = (text) =>
  text.split('\n').filter((line) => skipPattern.test(line)).map((line) => line.trim());

const cargoTests = async (which) => {
  const native = join(root, 'native');
  const words = ['test', ...which, '--quiet', '--no-fail-fast'];
  const { code, text } = await run('cargo', words, native);
  const sum = (pattern) =>
    [...text.matchAll(pattern)].reduce((total, [, count]) => total + Number(count), 0);
  const failed = sum(/(\d+) failed;/g);
  return {
    passed: sum(/test result: .* (\d+) passed;/g), skipped: sum(/(\d+) ignored;/g),
    // A crate that does not compile reports no failed test.
    failed: code !== 0 && failed === 0 ? 1 : failed, tests: [], reasons: reasonsIn(text),
    broken: [...text.matchAll(/^ {4}`(-p [^`]+)`$/gm)].map(([, words]) => words),
    failures: [...text.matchAll(/^---- (\S+) stdout ----$/gm)].map(([, name]) => name),
  };
};

const allCargoTests = () => cargoTests(['--workspace']);

/** Each target by itself: cargo's words for one leave out the others. */
const cargoTestsAgain = async (broken) => {
  const results = [];
  for (const target of broken) results.push(await cargoTests(target.split(' ')));
  return {
    failed: results.reduce((total, one) => total + one.failed, 0),
    failures: results.flatMap((one) => one.failures),
  };
};

const vitest = async (project, filters) => {
  const file = join(reports, `${project}.json`);
  rmSync(file, { force: true });
  const { code, text } = await run('vitest', [
    'run', '--project', project, '--passWithNoTests', '--reporter=default', '--reporter=json',
    `--outputFile.json=${file}`, ...filters,
  ]);
  if (!existsSync(file)) {
    return { passed: 0, failed: 1, skipped: 0, tests: [], reasons: [], broken: [], failures: [] };
  }
  const report = JSON.parse(readFileSync(file, 'utf8'));
  const brokenFiles = report.testResults
    .filter((one) => one.status === 'failed' && one.assertionResults.length === 0);
  const failed = report.numFailedTests + brokenFiles.length;
  const tests = report.testResults.flatMap((one) => one.assertionResults.map((result) => ({
    name: `${one.name.slice(root.length + 1)}: ${result.fullName}`, ms: result.duration ?? 0,
    failed: result.status === 'failed',
    skipped: result.status === 'pending' || result.status === 'skipped' || result.status === 'todo',
  })));
  const skippedNames = tests.filter((test) => test.skipped).map((test) => `skipped: ${test.name}`);
  return {
    passed: report.numPassedTests, failed: code !== 0 && failed === 0 ? 1 : failed,
    skipped: report.numPendingTests + report.numTodoTests, tests,
    reasons: [...reasonsIn(text), ...skippedNames],
    broken: report.testResults.filter((one) => one.status === 'failed')
      .map((one) => one.name.slice(root.length + 1)),
    failures: [...brokenFiles.map((one) => one.name.slice(root.length + 1)),
      ...tests.filter((test) => test.failed).map((test) => test.name)],
  };
};

/** Generated files are made anew and must be what is committed. */
const generatedFiles = async () => {
  const pages = await check('node', ['infra/docs/generate.mjs', '--check']);
  const addon = await check('node', ['native/build.mjs', '--check']);
  return { ...pages, passed: pages.passed + addon.passed, failed: pages.failed + addon.failed };
};

const stagesFor = (gate, filters) => {
  if (gate === 'cluster') return [['production profile', () => vitest('cluster', filters)]];
  if (gate === 'long') return [['what takes minutes', () => vitest('long', filters)]];
  if (gate === 'models') return [['models and traces', () => vitest('models', filters)]];
  const tried = async (once, again) =>
    (gate === 'ready' ? once() : withSecondTry(await once(), again));
  const project = (name) => () =>
    tried(() => vitest(name, filters), (broken) => vitest(name, broken));
  const tests = [['unit tests', project('unit')], ['end-to-end tests', project('e2e')]];
  if (filters.length > 0) return tests;
  return [
    ['types', () => check('tsc', ['-b'])],
    ['lint', () => check('oxlint', ['--type-aware', '.'])],
    ['Rust tests', () => tried(allCargoTests, cargoTestsAgain)],
    ...tests,
    ...(gate === 'ready' ? [
      ['Rust lint', () => check('cargo', [
        'clippy', '--workspace', '--quiet', '--manifest-path', 'native/Cargo.toml',
      ])],
      ['generated files', generatedFiles],
    ] : []),
  ];
};

const seconds = (ms) => `${(ms / 1000).toFixed(1).padStart(7)} s`;

const summarise = (results) => {
  const total = { passed: 0, failed: 0, skipped: 0 };
  console.log('\nWhat took how long:');
  for (const { name, ms, result } of results) {
    for (const key of Object.keys(total)) total[key] += result[key];
    const { passed, failed, skipped } = result;
    console.log(`${seconds(ms)}  ${name}: ${passed} passed, ${failed} failed, ${skipped} skipped`);
  }
  const slowest = results.flatMap(({ result }) => result.tests).sort((a, b) => b.ms - a.ms);
  console.log('Slowest tests:');
  for (const { ms, name } of slowest.slice(0, slowestCount)) {
    console.log(`${seconds(ms)}  ${name}`);
  }
  const reasons = new Set(results.flatMap(({ result }) => result.reasons));
  if (reasons.size > 0) console.log(`Skips and their reasons:\n  ${[...reasons].join('\n  ')}`);
  const unsteady = results.flatMap(({ result }) => result.unsteady ?? []);
  if (unsteady.length > 0) {
    const names = unsteady.join('\n  ');
    console.log(`Failed, then passed alone (each is a defect to be found):\n  ${names}`);
  }
  console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  return total.failed === 0 && total.passed > 0;
};

const main = async () => {
  const [gate, ...filters] = process.argv.slice(2);
  mkdirSync(reports, { recursive: true });
  const results = [];
  for (const [name, stage] of stagesFor(gate, filters)) {
    console.log(`\n── ${name}`);
    const started = Date.now();
    results.push({ name, result: await stage(), ms: Date.now() - started });
  }
  process.exitCode = summarise(results) ? 0 : 1;
};

await main();
