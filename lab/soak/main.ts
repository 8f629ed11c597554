/**
 * `npm run soak -- …`: a guest moves back and forth for minutes, every third move with a fault, and
 * everything is watched for growth (docs/guides/faults.md). Reads the command line and prints.
 */
import { randomInt } from 'node:crypto';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { count } from '../bench/options.ts';
import { runCommandLine } from '../command-line.ts';
import { keepLogs } from '../faults/campaign.ts';
import { randomOf } from '../faults/cells.ts';
import { Results } from '../faults/results.ts';
import { commitOf, onInterrupt, progressTo, seedOf } from '../faults/sitting.ts';
import { projectRoot } from '../guest-image.ts';
import type { Lab } from '../lab.ts';
import type { Growth } from './growth.ts';
import { lineOf, soakLine, summarise } from './report.ts';
import type { SoakLine, SoakSummary } from './report.ts';
import { runSoak } from './soak.ts';

interface Flags {
  readonly minutes: number;
  readonly seed?: number;
  readonly resume: boolean;
  readonly out: string;
  readonly logs?: string;
  readonly ledger?: string;
  readonly json: boolean;
}

const textOf = (line: SoakLine): string => [
  (line.fault ?? 'nothing is done').padEnd(52), line.outcome.padEnd(12),
  `${(line.wholeMs / 1000).toFixed(1)} s`,
  ...line.violations.map((what) => `\n    ! ${what}`),
].join('  ');

const figure = (value: number): string =>
  (Math.abs(value) >= 100_000 ? `${(value / 1e6).toFixed(1)} M` : String(Math.round(value)));

const textOfGrowth = ({ who, what, first, last, largest, perMove, verdict }: Growth): string =>
  `${`${who}: ${what}`.padEnd(36)} ${figure(first)} → ${figure(last)}, at most ${figure(largest)}, `
    + `${perMove === null ? '-' : perMove.toPrecision(2)} a move: ${verdict}`;

const textOfSummary = (summary: SoakSummary): string => [
  ...summary.growth.map(textOfGrowth),
  `${summary.moves} moves, ${summary.faults} of them with a fault, in ${summary.minutes} min and `
    + `${summary.sittings} sittings: ${Object.entries(summary.outcomes)
      .map(([name, times]) => `${name} ${times}`).join(', ')}`,
  `${summary.lostWrites} writes lost, at most ${summary.runningCopiesMax} running; ${
    [...summary.violations, ...summary.grows.map((name) => `${name} grows`)].join('; ')
      || 'nothing happened that must not'}: ${summary.verdict}`,
].join('\n');

async function sit(flags: Flags): Promise<void> {
  const { minutes, json } = flags;
  const commit = commitOf();
  const results = new Results(flags.out);
  const earlier = flags.resume ? results.of(new Set([commit]), soakLine) : [];
  const seed = flags.seed ?? earlier.at(-1)?.seed ?? randomInt(2 ** 32);
  const sitting = (earlier.at(-1)?.sitting ?? 0) + 1;
  const lines = [...earlier];
  const interrupt = new AbortController();
  let lab: Lab | null = null;
  onInterrupt(interrupt, async () => await lab?.lower());
  const tell = progressTo(process.stderr);
  tell(`seed ${seed}, commit ${commit}, ${minutes} minutes, results in ${flags.out}`);
  await runSoak({
    minutes,
    // Each sitting meets other faults, the same ones for the same seed.
    random: randomOf((seed + sitting - 1) % 2 ** 32),
    tell: (what) => tell(`move ${lines.length + 1}: ${what}`),
    onLab: (raised) => { lab = raised; },
    onEnd: (ended, isBad) => {
      if (isBad && flags.logs !== undefined) keepLogs(ended, join(flags.logs, ended.id));
      if (flags.ledger !== undefined) {
        cpSync(join(ended.directories.data, 'ledger'), flags.ledger, { recursive: true });
      }
    },
    interrupted: interrupt.signal,
    onStep: (step) => {
      const line = lineOf(step, { commit, seed, sitting });
      lines.push(line);
      results.add(line);
      if (process.stderr.isTTY) process.stderr.write('\r\u001b[K');
      process.stdout.write(`${json ? JSON.stringify(line) : textOf(line)}\n`);
    },
  });
  const summary = summarise(lines, { commit, seed });
  process.stdout.write(`${json ? JSON.stringify(summary) : textOfSummary(summary)}\n`);
  if (summary.verdict === 'failed') process.exitCode = 1;
}

const program = new Command('soak')
  .description('Moves a guest back and forth in a lab of network namespaces on this machine (needs '
    + 'root), every third move with a fault, and watches everything for growth.')
  .option('--minutes <n>', 'length of this sitting', count, 60)
  .option('--seed <n>', 'faults and their order', seedOf)
  .option('--resume', 'go on with what the file holds for this commit', false)
  .option('--out <file>', 'samples are added to this file', join(projectRoot, 'build/soak.jsonl'))
  .option('--logs <folder>', 'keep the logs of a sitting that goes wrong')
  .option('--ledger <folder>', 'copy what the ledger has recorded here, for npm run models')
  .option('--json', 'one JSON line a move, the last line sums up', false)
  .action(async (flags: Flags) => await sit(flags));

await runCommandLine(program, { kind: 'failed' });
