/** What a person reads at the top of an evacuation's page in Temporal's UI (Markdown): pure. */
import type {
  EvacuationOutcome, EvacuationRow, EvacuationStatus,
} from '../../contracts/evacuation.ts';

/** Lines of VMs that are named; more are counted. */
const namedMax = 20;

const time = (ms: number): string => new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');

function outcomeText(outcome: EvacuationOutcome): string {
  const { kind, movedCount, skipped, by, failure, totalMs } = outcome;
  const figures = `${movedCount} moved, ${skipped.length} still there, `
    + `${(totalMs / 1_000).toFixed(1)} s`;
  if (kind === 'cancelled') return `**cancelled** by ${by ?? '?'}: ${figures}`;
  if (failure !== null) {
    return `**failed**: ${failure.message} (\`${failure.code}\`): ${failure.detail}. `
      + failure.remedy;
  }
  return `**${kind}**: ${figures}`;
}

function vmLine({ vm, state, target, migration, failure }: EvacuationRow): string {
  if (state === 'moving') return `- \`${vm}\` → \`${target ?? '?'}\` (\`${migration ?? '?'}\`)`;
  const why = failure === null ? ''
    : `: ${failure.message} (\`${failure.code}\`) ${failure.detail}`;
  return `- \`${vm}\` **${state}**${why}`;
}

/** One line of state, one of counts, what is waited for, and the VMs that are worth a look. */
export function evacuationDetails(status: EvacuationStatus): string {
  const { host, phase, paused, rows, opensAtMs, waitingFor, outcome } = status;
  const count = (state: EvacuationRow['state']): number =>
    rows.filter((row) => row.state === state).length;
  const shown = rows.filter(({ state, failure }) => state === 'moving' || state === 'skipped'
    || state === 'busy' || (state === 'waiting' && failure !== null));
  return [
    outcome === null ? `\`${host}\`: **${paused ? 'paused' : phase}**`
      : `\`${host}\`: ${outcomeText(outcome)}`,
    `${rows.length} VMs: ${count('moved')} moved, ${count('moving')} moving, `
      + `${count('waiting')} waiting, ${count('busy')} busy, ${count('left')} left, `
      + `${count('skipped')} skipped`,
    ...(outcome === null && opensAtMs !== null ? [`moves begin at ${time(opensAtMs)}`] : []),
    ...(outcome === null && waitingFor !== null ? [`waits for ${waitingFor.what}`] : []),
    ...(shown.length === 0 ? [] : [shown.slice(0, namedMax).map(vmLine).join('\n')]),
    ...(shown.length > namedMax ? [`and ${shown.length - namedMax} more`] : []),
  ].join('\n\n');
}
