/**
 * Writes the generated pages of docs/: `node infra/docs/generate.mjs`. With --check it writes
 * nothing and exits with 1 when a page differs from what the sources say.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describeProgram } from '../../cli/program.ts';
import { cliPreface, failuresPage, programPage } from '../../cli/reference.ts';
import { coveragePage } from '../../lab/faults/coverage-page.ts';
import { hostProgram } from '../../runners/host/local-cli.ts';

const results = fileURLToPath(new URL('../../docs/measurements/faults.jsonl', import.meta.url));
const pages = {
  'docs/failures.md': failuresPage(),
  'docs/measurements/faults.md': coveragePage(readFileSync(results, 'utf8')),
  'docs/api/cli.md': programPage(
    { program: describeProgram(), source: 'cli/', preface: cliPreface }),
  'docs/api/host-cli.md': programPage({ program: hostProgram(), source: 'runners/host/local-cli.ts',
    preface: ['Exit codes: 0 ok, 1 a mistake of ours, 2 usage, 3 refused, 6 no runner answers.',
      ''] }),
};
const check = process.argv.includes('--check');
for (const [page, text] of Object.entries(pages)) {
  const path = fileURLToPath(new URL(`../../${page}`, import.meta.url));
  let present = '';
  try {
    present = readFileSync(path, 'utf8');
  } catch {
    // A page that is not there yet differs.
  }
  if (present === text) continue;
  if (check) {
    process.stderr.write(`${page} differs from its source: run node infra/docs/generate.mjs\n`);
    process.exitCode = 1;
    continue;
  }
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  process.stdout.write(`wrote ${page}\n`);
}
