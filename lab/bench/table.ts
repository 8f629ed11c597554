/** Results as lines for people. Pure. */
import { formatBytes } from '../../contracts/units.ts';
import type { RunRecord } from './measure.ts';
import type { BenchSummary } from './summary.ts';

const shown = (value: number | null, digits = 0): string =>
  (value === null ? '-' : value.toFixed(digits)).padStart(9);

/** One run. */
export function tellRun(record: RunRecord): string {
  return [
    record.engine.padEnd(18), String(record.run).padStart(3), record.outcome.padEnd(13),
    shown(record.totalMs), shown(record.downtimeMs, 1), shown(record.outsideGapMsMax, 1),
    shown(record.redisGapMsMax, 1),
    (record.wireBytes === null ? '-' : formatBytes(record.wireBytes)).padStart(9),
    shown(record.cpuSeconds, 2), shown(record.rounds),
    record.reason === null ? '' : `  ${record.reason}`,
  ].join(' ');
}

/** Names of the columns of `tellRun`. */
export const runHeader = `${'engine'.padEnd(18)} run outcome         total ms   down ms    gap ms  `
  + 'redis ms      wire     cpu s    rounds';

/** Medians and spread of a series. */
export function tellSummary(summary: BenchSummary): string {
  const lines = summary.engines.map((engine) => {
    const median = (name: keyof typeof engine.figures): string => {
      const figure = engine.figures[name];
      return figure === undefined ? '-'
        : `${figure.median.toFixed(1)} (${figure.min.toFixed(1)}-${figure.max.toFixed(1)})`;
    };
    return `${engine.engine.padEnd(18)} ${engine.completed}/${engine.runs} good, `
      + `${engine.damaged} damaged, ${engine.failed} failed, ${engine.linkLate} on a late link; `
      + `total ${median('totalMs')} ms; downtime ${median('downtimeMs')} ms; `
      + `gap ${median('outsideGapMsMax')} ms`;
  });
  return `medians (spread) of verified runs\n${lines.join('\n')}`;
}
