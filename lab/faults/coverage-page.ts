/**
 * The page that sums up the campaign's kept results: what was covered, how it ended, what is left.
 * Of several runs of a cell the last one counts. Pure.
 */
import { quantile } from '../client/gaps.ts';
import { cellsOf, nameOfCell } from './cells.ts';
import { coveredBy, isCell, linesOf, resultLine, wasTried } from './results.ts';
import type { ResultLine } from './results.ts';
import { goalCounts, stageOf } from './coverage.ts';
import type { GoalCount } from './coverage.ts';

/** Goals listed by name; of longer lists the number is enough. */
const openListedMax = 60;
const impossibleListedMax = 12;

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;
const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

/** Median and worst; empty without figures. */
const medianAndWorst = (figures: readonly number[], text: (figure: number) => string): string =>
  (figures.length === 0 ? '' : `${text(quantile(figures, 0.5))}, ${text(Math.max(...figures))}`);

const known = (figures: readonly (number | null)[]): number[] =>
  figures.filter((figure) => figure !== null);

function endsOf(lines: readonly ResultLine[]): string {
  const ends = new Map<string, number>();
  for (const { outcome } of lines) ends.set(outcome, (ends.get(outcome) ?? 0) + 1);
  return [...ends].toSorted(([a], [b]) => a.localeCompare(b))
    .map(([outcome, times]) => `${times} ${outcome}`).join(', ');
}

const groupedBy = (
  lines: readonly ResultLine[], nameOf: (line: ResultLine) => string,
): [string, ResultLine[]][] =>
  [...Map.groupBy(lines, nameOf)].toSorted(([a], [b]) => a.localeCompare(b));

function tableBy(
  name: string, lines: readonly ResultLine[], nameOf: (line: ResultLine) => string,
): string[] {
  return [
    `| ${name} | runs, cells | ended as | answers again, median and worst `
      + '| sent again by those that completed, median and worst |',
    '|---|---|---|---|---|',
    ...groupedBy(lines, nameOf).map(([group, of]) => {
      const completed = of.filter(({ outcome }) => outcome === 'completed');
      return `| ${group} | ${of.length}, ${coveredBy(of).size} | ${endsOf(of)} | ${
        medianAndWorst(known(of.map(({ recoveredMs }) => recoveredMs)), seconds)} | ${
        medianAndWorst(known(completed.map((line) => line.bytesSentAgain)), megabytes)} |`;
    }),
    '',
  ];
}

/** The last run of each cell. */
const latestOf = (lines: readonly ResultLine[]): ResultLine[] =>
  [...new Map(lines.map((line) => [nameOfCell(line), line])).values()];

const badRun = (line: ResultLine): string =>
  `- ${nameOfCell(line)} (${line.commit}): ${line.violations.join('; ')}`;

const firstOf = (names: readonly string[], count: number): string =>
  names.slice(0, count).join('; ') + (names.length > count ? '; and others' : '');

function goalsText({ kind, open, impossible }: GoalCount): string[] {
  const reasons = Map.groupBy(impossible, ({ reason }) => reason);
  return [
    `### ${kind}`, '',
    open.length === 0 ? 'Nothing is left.'
      : `Never run, ${open.length}: ${firstOf(open, openListedMax)}.`,
    '',
    ...[...reasons].map(([reason, goals]) =>
      `- impossible, ${goals.length} (${reason}): ${
        firstOf(goals.map(({ goal }) => goal), impossibleListedMax)}`),
    ...(impossible.length === 0 ? [] : ['']),
  ];
}

/** Text of docs/measurements/faults.md for the text of the file of results. */
export function coveragePage(results: string): string {
  const all = linesOf(results, resultLine);
  const runs = all.filter(wasTried);
  const latest = latestOf(runs);
  const bad = latest.filter(({ violations }) => violations.length > 0);
  const mended = runs.filter((line) => line.violations.length > 0
    && !latest.includes(line) && !bad.some((last) => nameOfCell(last) === nameOfCell(line)));
  const cells = cellsOf({ victims: [], phases: [], faults: [] });
  const counts = goalCounts(cells, coveredBy(runs));
  const commits = new Set(runs.map(({ commit }) => commit));
  const untried = all.filter((line) => isCell(line) && !wasTried(line)).length;
  const idle = runs.filter(({ took }) => took === false).length;
  const lostWrites = runs.reduce((sum, line) => sum + (line.lostWrites ?? 0), 0);
  const damaged = runs.filter(({ violations }) =>
    violations.some((what) => what.includes('damaged'))).length;
  const largest = (of: (line: ResultLine) => number): number =>
    runs.reduce((most, line) => Math.max(most, of(line)), 0);
  return [
    '# What the fault campaign has covered', '',
    'Generated from [faults.jsonl](faults.jsonl) by `node infra/docs/generate.mjs`; what the',
    'words mean says [the guide](../guides/faults.md).', '',
    `${runs.length} runs with a fault on ${commits.size} commits, ${coveredBy(runs).size} cells; `
      + `${endsOf(runs)}. Beside these ${untried} runs in which the phase was not reached or the `
      + `lab failed: they count for nothing. In ${idle} of the first ones the victim needed no `
      + 'memory while it had none to get.', '',
    `Worst of all runs: ${largest((line) => line.vcpuRunningMax)} running and `
      + `${largest((line) => line.effectiveMax)} effective at once, ${lostWrites} acknowledged `
      + `writes lost, ${damaged} guests damaged.`, '',
    '| every | covered | of | impossible |', '|---|---|---|---|',
    ...counts.map(({ kind, covered, possible, impossible }) =>
      `| ${kind} | ${covered} | ${possible} | ${impossible.length} |`), '',
    '## What must not happen, in the last run of its cell', '',
    ...(bad.length === 0 ? ['None.'] : bad.map(badRun)), '',
    '## What did happen and did not again when the cell was run once more', '',
    ...(mended.length === 0 ? ['None.'] : mended.map(badRun)), '',
    '## How runs ended', '',
    ...tableBy('fault', runs, ({ fault }) => fault),
    ...tableBy('victim', runs, ({ victim }) => victim),
    ...tableBy('stage', runs, ({ phase }) => stageOf(phase)),
    '## What is left', '',
    ...counts.flatMap(goalsText),
  ].join('\n');
}
