/** What a person reads at the top of a move's page in Temporal's UI (Markdown): pure. */
import type { MigrationOutcome, MigrationStatus, SessionProgress } from '../../contracts/migration.ts';
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

const rate = (bytesPerSecond: number): string => `${formatBytes(Math.round(bytesPerSecond))}/s`;

/** The session at the last look, which may be minutes ago: looks are few, to keep histories short. */
function figuresOf(progress: SessionProgress): readonly string[] {
  const { round, paused, bytesDone, bytesPlanned, diskBytesDone, diskBytesTotal } = progress;
  const foreseen = [
    ...(progress.etaMs === null ? [] : [`${milliseconds(progress.etaMs)} left`]),
    ...(progress.estimatedDowntimeMs === null ? []
      : [`downtime of ${milliseconds(progress.estimatedDowntimeMs)} foreseen`]),
  ];
  return [
    ...(diskBytesTotal === 0 ? []
      : [`disks: ${formatBytes(diskBytesDone)} of ${formatBytes(diskBytesTotal)}`]),
    `round ${round}${paused ? ' (paused)' : ''}, `
    + `${formatBytes(bytesDone)} of ${formatBytes(bytesPlanned)}, `
    + `${formatBytes(progress.bytesOnWire)} on the wire, `
    + `${rate(progress.sendBytesPerSecond)} sent, ${rate(progress.dirtyBytesPerSecond)} dirtied`,
    ...(foreseen.length === 0 ? [] : [`when last asked: ${foreseen.join(', ')}`]),
    ...(progress.convergence === '' ? [] : [`convergence: ${progress.convergence}`]),
  ];
}

/** One line of state, then figures, then what is waited for. */
export function currentDetails(status: MigrationStatus): string {
  const { vm, source, target, phase, percent, progress, waitingFor, outcome } = status;
  const lines = [`\`${vm}\`: \`${source ?? '?'}\` → \`${target}\``];
  if (outcome !== null) return [...lines, outcomeText(outcome)].join('\n\n');
  lines.push(`phase **${phase}**, ${percent} %`);
  if (progress !== null) lines.push(...figuresOf(progress));
  if (waitingFor !== null) lines.push(`waits for ${waitingFor.what}`);
  return lines.join('\n\n');
}
