/**
 * Builds the addon in release mode into native/generated: novacron.linux-x64-gnu.node (not
 * committed), index.js and index.d.ts (committed, checked by `--check`). Needs cargo and the
 * project's npm packages; cargo decides what is up to date.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const native = dirname(fileURLToPath(import.meta.url));
const root = dirname(native);
const generated = join(native, 'generated');
const committed = ['index.js', 'index.d.ts'];
const check = process.argv.includes('--check');

mkdirSync(generated, { recursive: true });
const output = check ? mkdtempSync(join(generated, '.check-')) : generated;
try {
  const built = spawnSync(
    process.execPath,
    [
      join(root, 'node_modules/@napi-rs/cli/dist/cli.js'), 'build', '--release', '--platform',
      '--manifest-path', join(native, 'node/Cargo.toml'),
      '--package-json-path', join(native, 'node/package.json'),
      '--target-dir', process.env['CARGO_TARGET_DIR'] ?? join(native, 'target'),
      '--output-dir', output, '--js', 'index.js', '--dts', 'index.d.ts', '--no-const-enum', '--esm',
      ...(process.env['NOVACRON_CARGO_JOBS'] ? ['--', '-j', process.env['NOVACRON_CARGO_JOBS']] : []),
    ],
    { cwd: join(native, 'node'), stdio: 'inherit' },
  );
  if (built.status !== 0) process.exit(built.status ?? 1);
  if (check) {
    for (const name of committed) {
      if (readFileSync(join(output, name), 'utf8') !== readFileSync(join(generated, name), 'utf8')) {
        console.error(`native/generated/${name} is not what the addon's source gives: run npm run native`);
        process.exitCode = 1;
      }
    }
    copyFileSync(join(output, 'novacron.linux-x64-gnu.node'), join(generated, 'novacron.linux-x64-gnu.node'));
  }
} finally {
  if (check) rmSync(output, { recursive: true, force: true });
}
