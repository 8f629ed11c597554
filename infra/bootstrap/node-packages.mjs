// npm packages from the lockfile, and Node 24 through the `node` package.
//
// npm 10 runs every package's install script, npm 11 none that was not approved. Here none is run
// by npm's own choice: the two that are needed (Node's binary, zstd's binding) are run by name.
import { existsSync, lstatSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { SetupError, runProgram } from './process.mjs';

const nodeMajor = 24;

const nodeVersion = async (root) => {
  try {
    return (await runProgram(join(root, 'node_modules/node/bin/node'), ['--version'])).trim();
  } catch {
    return null;
  }
};

/** Puts Node 24 where the scripts look for it: node_modules/.bin/node. */
export const ensureNode = async ({ root, log, onLine }) => {
  const folder = join(root, 'node_modules/node');
  if (await nodeVersion(root) === null) {
    await runProgram(
      process.execPath, ['installArchSpecificPackage.js'], { cwd: folder, log, onLine });
  }
  const version = await nodeVersion(root);
  if (!version?.startsWith(`v${nodeMajor}.`)) {
    throw new SetupError(
      `node_modules/node holds ${version ?? 'no Node'} instead of Node ${nodeMajor}: `
      + 'remove node_modules and run this again');
  }
  const link = join(root, 'node_modules/.bin/node');
  if (!existsSync(link)) {
    if (lstatSync(link, { throwIfNoEntry: false })) rmSync(link);
    symlinkSync('../node/bin/node', link);
  }
  return version;
};

/** Installs what the lockfile names; the lockfile itself stays as it is. */
export const installNodePackages = async ({ root, log, onLine }) => {
  const lockfile = join(root, 'package-lock.json');
  const locked = readFileSync(lockfile);
  // Not `npm ci`: it refuses a lockfile in which a platform's optional binary was never published.
  try {
    await runProgram('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund'], {
      cwd: root, log, onLine,
    });
  } finally {
    if (!readFileSync(lockfile).equals(locked)) writeFileSync(lockfile, locked);
  }
  await ensureNode({ root, log, onLine });
};

/** The zstd binding of the payload codec, compiled where no prebuilt one can be had. */
export const buildZstd = async ({ root, env, log, onLine }) => {
  const binding = join(root, 'node_modules/zstd-napi/build/Release/binding.node');
  if (existsSync(binding)) return 'cached';
  await runProgram('npm', ['rebuild', 'zstd-napi'], { cwd: root, env, log, onLine });
  if (!existsSync(binding)) {
    // npm 11 skips scripts that package.json does not approve without a failure of its own.
    throw new SetupError(`the zstd binding was not built: see ${log}`);
  }
  return 'done';
};
