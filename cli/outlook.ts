/**
 * What an operator is told of a move that will not end by itself, and which commands would end it.
 * Pure, from the status; whether it ends is foreseen by the engine (native/core).
 */
import type { MigrationStatus } from '../contracts/migration.ts';
import { formatBytes } from '../contracts/units.ts';
import { formatMillis } from './progress.ts';

/** Room above the foreseen last pass: a budget that just fits is missed by the next round. */
const budgetMargin = 1.25;
/** The longest budget that `migration set` takes, ms. */
const downtimeBudgetMsMax = 60_000;

/** Why it will not end, and what would help, the least intrusive first. */
export interface OutlookAdvice {
  readonly reason: string;
  readonly remedies: readonly { readonly command: string; readonly effect: string }[];
}

const rate = (value: number): string => `${formatBytes(Math.max(0, Math.round(value)))}/s`;

/** Null while the move is expected to end. `migration` is how the commands name it. */
export function outlookAdvice(
  { migration, status }: { readonly migration: string; readonly status: MigrationStatus },
): OutlookAdvice | null {
  const { progress, policy, vm, target } = status;
  const copying = status.phase === 'copy-disk' || status.phase === 'copy-memory';
  if (progress === null || !copying || status.outcome !== null) return null;
  const { outlook, dirtyBytesPerSecond, sendBytesPerSecond, estimatedDowntimeMs } = progress;
  const cap = policy.bandwidthBytesPerSecond;
  const widen = cap === 0 ? [] : [{
    command: `novacron migration set ${migration} --bandwidth none`,
    effect: `the move is capped at ${rate(cap)}`,
  }];
  const again = (option: string): string =>
    `novacron migration cancel ${migration} && novacron migrate ${vm} --to ${target} ${option}`;
  if (outlook === 'not-converging') {
    const budgetMs = Math.ceil((estimatedDowntimeMs ?? Infinity) * budgetMargin / 10) * 10;
    const faster = dirtyBytesPerSecond > sendBytesPerSecond ? 'faster than' : 'as fast as';
    return {
      reason: `memory changes ${faster} the link carries it (${rate(dirtyBytesPerSecond)} changed, `
        + `${rate(sendBytesPerSecond)} sent): with a downtime budget of `
        + `${formatMillis(policy.downtimeBudgetMs)} and post-copy ${policy.postCopy} the move does `
        + 'not end by itself and will be given up, unless the guest calms down',
      remedies: [
        ...widen,
        ...(budgetMs <= downtimeBudgetMsMax ? [{
          command: `novacron migration set ${migration} --downtime-budget ${budgetMs}ms`,
          effect: `the VM then stands for about ${formatMillis(budgetMs)}`,
        }] : []),
        {
          command: again('--post-copy when-needed'),
          effect: 'memory is fetched after the switchover; a host that dies then costs a cold boot',
        },
      ],
    };
  }
  if (outlook !== 'past-deadline') return null;
  return {
    reason: `the move will not be over by its deadline (${rate(sendBytesPerSecond)} sent, `
      + `${rate(dirtyBytesPerSecond)} changed) and will be given up then`,
    remedies: [...widen, {
      command: again('--deadline 24h'), effect: 'a new request with more time',
    }],
  };
}

/** The advice as lines for people. */
export const adviceLines = ({ reason, remedies }: OutlookAdvice): string[] => [
  reason, ...remedies.map(({ command, effect }) => `  ${command}  (${effect})`)];
