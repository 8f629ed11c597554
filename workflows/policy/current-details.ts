/** What a person reads at the top of a move's page in Temporal's UI (Markdown): pure. */
import type { MigrationOutcome, MigrationStatus } from '../../contracts/migration.ts';
import { formatBytes } from '../../contracts/units.ts';

const milliseconds = (value: number): string =>
  value >= 10_000 ? `${Math.round(value / 1000)} s` : `${Math.round(value)} ms`;

function outcomeText(outcome: MigrationOutcome): string {
  switch (outcome.kind) {
    case 'completed':
      return `**completed**: \`${outcome.vm}\` runs on \`${outcome.target}\`, epoch `
        + `${outcome.epochBefore} → ${outcome.epochAfter}, downtime `
        + `${milliseconds(outcome.figures.downtimeMs)}, total `
        + `${milliseconds(outcome.figures.totalMs)}, `
        + `${formatBytes(outcome.figures.bytesOnWire)} on the wire, `
        + `${outcome.figures.rounds} rounds`;
    case 'cancelled':
      return `**cancelled** by ${outcome.by}: \`${outcome.vm}\` stays on \`${outcome.source}\``;
    case 'damaged':
      return `**damaged**: \`${outcome.vm}\` stands on \`${outcome.target}\`: `
        + `${outcome.exactness.detail}. Both images are kept; decide with `
        + `\`novacron vm resolve ${outcome.vm} --accept\` or \`--cold\`.`;
    case 'failed':
      return `**failed**: ${outcome.failure.message} (\`${outcome.failure.code}\`): `
        + `${outcome.failure.detail}. ${outcome.failure.remedy} `
        + (outcome.runsOn === null ? 'The VM runs nowhere.' : `The VM runs on ${outcome.runsOn}.`);
  }
}

/** One line of state, one of figures, one of what is waited for. */
export function currentDetails(status: MigrationStatus): string {
  const { vm, source, target, phase, percent, progress, waitingFor, outcome } = status;
  const lines = [`\`${vm}\`: \`${source ?? '?'}\` → \`${target}\``];
  if (outcome !== null) return [...lines, outcomeText(outcome)].join('\n\n');
  lines.push(`phase **${phase}**, ${percent} %`);
  if (progress !== null) {
    lines.push(
      `round ${progress.round}${progress.paused ? ' (paused)' : ''}, `
      + `${formatBytes(progress.bytesDone)} of ${formatBytes(progress.bytesPlanned)}, `
      + `${formatBytes(progress.bytesOnWire)} on the wire, `
      + `${formatBytes(Math.round(progress.sendBytesPerSecond))}/s sent, `
      + `${formatBytes(Math.round(progress.dirtyBytesPerSecond))}/s dirtied`,
    );
  }
  if (waitingFor !== null) lines.push(`waits for ${waitingFor.what}`);
  return lines.join('\n\n');
}
