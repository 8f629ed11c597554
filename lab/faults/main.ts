/**
 * `npm run faults -- …`: moves of guests under load in the lab, each with one fault at one moment,
 * judged from outside (docs/guides/faults.md). Reads the command line and prints.
 */
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { count, listOf } from '../bench/options.ts';
import { runCommandLine } from '../command-line.ts';
import { projectRoot } from '../guest-image.ts';
import type { Lab } from '../lab.ts';
import { runCampaign } from './campaign.ts';
import {
  cellsOf, faults, isPhase, nameOfCell, obstacleOf, phases, victims,
} from './cells.ts';
import type { Cell, Fault, Victim } from './cells.ts';
import { inBreadth } from './coverage.ts';
import {
  coveredBy, isCell, lineOf, resultLine, Results, settledOn, summarise, wasTried,
} from './results.ts';
import type { ResultLine, Summary } from './results.ts';
import { commitOf, commitsSince, onInterrupt, progressTo, seedOf } from './sitting.ts';

interface Flags {
  readonly seed: number;
  readonly runs: number;
  readonly victim: Victim[];
  readonly phase: string[];
  readonly fault: Fault[];
  readonly resume: boolean;
  readonly since?: string;
  readonly list: boolean;
  readonly out: string;
  readonly logs?: string;
  readonly json: boolean;
}

const wordOf = <T extends string>(what: string, known: readonly T[]) => (text: string): T => {
  const found = known.find((word) => word === text);
  if (found !== undefined) return found;
  throw new InvalidArgumentError(`${what}: ${known.join(', ')}`);
};

/** A phase, or a step, which is both of its points. */
function phaseOf(text: string): string {
  if (isPhase(text) || phases.some((phase) => phase.startsWith(`${text}/`))) return text;
  throw new InvalidArgumentError('a fault point, a step, memory or post-copy; see --list');
}

const seconds = (ms: number | null): string => (ms === null ? '-' : `${(ms / 1000).toFixed(1)} s`);

const textOf = (line: ResultLine): string => {
  const cell = line.fault === ('-' as Fault) ? 'nothing is done' : nameOfCell(line);
  const words = [
    cell.padEnd(52), line.outcome.padEnd(12), `answers ${seconds(line.recoveredMs)}`.padEnd(16),
    `over ${seconds(line.endedMs)}`.padEnd(14), `copies ${line.runningCopiesMax}`,
    `again ${line.bytesSentAgain === null ? '-' : (line.bytesSentAgain / 1e6).toFixed(1)} MB`,
    ...(line.outcome === 'lab-failed' ? [line.told] : []),
    ...line.violations.map((what) => `\n    ! ${what}`),
  ];
  return words.join('  ');
};

function textOfSummary(
  { cells, outcomes, worst, median, medianPartsMs, violations }: Summary,
): string {
  const ends = Object.entries(outcomes).map(([name, times]) => `${name} ${times}`).join(', ');
  return [
    `cells ${cells.covered} of ${cells.chosen - cells.impossible} covered, `
      + `${cells.impossible} impossible; ${ends}`,
    `worst: ${worst.runningCopiesMax} running, ${worst.effectiveMax} effective, `
      + `${worst.lostWrites} writes lost, answers after ${seconds(worst.recoveredMs)} `
      + `(median ${seconds(median.recoveredMs)})`,
    `a run's time: ${Object.entries(medianPartsMs)
      .map(([part, ms]) => `${part} ${seconds(ms)}`).join(', ')} (medians)`,
    violations.length === 0 ? 'nothing happened that must not'
      : `${violations.length} runs with what must not happen`,
  ].join('\n');
}

function listCells(chosen: readonly Cell[], json: boolean): void {
  for (const cell of chosen) {
    const obstacle = obstacleOf(cell);
    const text = json ? JSON.stringify({ kind: 'cell', ...cell, obstacle })
      : `${nameOfCell(cell)}${obstacle === null ? '' : `  — ${obstacle}`}`;
    process.stdout.write(`${text}\n`);
  }
}

async function sit(flags: Flags): Promise<void> {
  const { seed, json, victim, phase, fault } = flags;
  const chosen = cellsOf({ victims: victim, phases: phase, faults: fault });
  if (flags.list) return listCells(chosen, json);
  const commit = commitOf();
  const results = new Results(flags.out);
  const counting = new Set(flags.since === undefined ? [] : commitsSince(flags.since)).add(commit);
  const earlier = flags.resume ? results.of(counting, resultLine) : [];
  const settled = settledOn(earlier, commit).filter(wasTried);
  const covered = coveredBy(settled);
  const left = chosen.filter((cell) =>
    obstacleOf(cell) === null && !covered.has(nameOfCell(cell)));
  const cells = inBreadth(left, { seed, tried: settled, count: flags.runs });
  const interrupt = new AbortController();
  let lab: Lab | null = null;
  onInterrupt(interrupt, async () => await lab?.lower());
  const lines: ResultLine[] = [...earlier];
  const tell = progressTo(process.stderr);
  tell(`seed ${seed}, commit ${commit}, ${cells.length} runs, results in ${flags.out}`);
  const done = (): string => `${lines.length - earlier.length}/${cells.length}`;
  await runCampaign({
    cells, keepLogsAt: flags.logs ?? null, interrupted: interrupt.signal,
    baselineBytes: earlier.findLast((line) => !isCell(line)
      && line.outcome === 'completed')?.bytesSent ?? null,
    tell: (what) => tell(`${done()} ${what}`),
    onLab: (raised) => { lab = raised; },
    onRecord: (record) => {
      const line = lineOf(record, { commit, seed });
      lines.push(line);
      results.add(line);
      if (process.stderr.isTTY) process.stderr.write('\r\u001b[K');
      process.stdout.write(`${json ? JSON.stringify(line) : textOf(line)}\n`);
    },
  });
  const summary = summarise(lines, { commit, seed, chosen });
  process.stdout.write(`${json ? JSON.stringify(summary) : textOfSummary(summary)}\n`);
  if (summary.violations.length > 0) process.exitCode = 1;
}

const program = new Command('faults')
  .description('Hurts processes, hosts and links at every moment of a move, in a lab of network '
    + 'namespaces on this machine (needs root), and judges from outside what came of it.')
  .option('--seed <n>', 'order of the cells', seedOf, randomInt(2 ** 32))
  .option('--runs <n>', 'runs of this sitting', count, 8)
  .option('--victim <list>', `of ${victims.join(',')}`, listOf(wordOf('victims are', victims)), [])
  .option('--phase <list>', 'fault points or steps (target/cont), memory, post-copy',
    listOf(phaseOf), [])
  .option('--fault <list>', `of ${faults.join(',')}`, listOf(wordOf('faults are', faults)), [])
  .option('--resume', 'leave out the cells that the file holds for this commit', false)
  .option('--since <commit>', 'with --resume: and for the commits from this one on')
  .option('--out <file>', 'results are added to this file',
    join(projectRoot, 'docs/measurements/faults.jsonl'))
  .option('--logs <folder>', 'keep the logs of runs that go wrong')
  .option('--list', 'print the cells, and why some can\'t be tried', false)
  .option('--json', 'one JSON line a run, the last line sums up', false)
  .action(async (flags: Flags) => await sit(flags));

await runCommandLine(program, { kind: 'failed' });
// Calls to a Temporal that is gone are repeated by its client for a minute: nobody waits for them.
process.exit();
