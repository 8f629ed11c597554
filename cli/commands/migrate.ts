/** `novacron migrate`: asks for a move and, with --watch, follows it to its end. */
import { Option } from 'commander';
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { defaultExactness, exactnessModes } from '../../contracts/exactness.ts';
import type { ExactnessMode } from '../../contracts/exactness.ts';
import { limits } from '../../contracts/limits.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type { MigrationPolicy } from '../../contracts/migration.ts';
import type { MigrationId } from '../../contracts/identity.ts';
import { readBandwidth, readCount, readDurationMs, readHostName, readRequestId, readVmName,
} from '../context.ts';
import type { Context } from '../context.ts';
import { exitCodes } from '../exit-codes.ts';
import type { CommandResult } from '../output.ts';
import { moveResult } from '../summary.ts';
import { watchMove } from '../watch.ts';

/** What may be said of a move; absent ones are the defaults. */
export interface PolicyOptions {
  readonly downtimeBudget?: string;
  readonly bandwidth?: string;
  readonly postCopy?: MigrationPolicy['postCopy'];
  readonly deadline?: string;
  readonly lanes?: string;
  readonly exactness?: ExactnessMode;
}
export interface MigrateOptions extends PolicyOptions {
  readonly to: string;
  readonly watch?: boolean;
  readonly request?: string;
}

/** A downtime budget beyond a minute is not a live move. */
const downtimeBudgetMsMax = 60_000;

/** Downtime budget as typed. */
export function readDowntimeBudgetMs(text: string): number {
  const value = readDurationMs({ text, option: '--downtime-budget', bareUnit: 'ms' });
  if (value >= 1 && value <= downtimeBudgetMsMax) return value;
  throw new CodedError('input/invalid', `--downtime-budget ${text}: write 1ms to 60s`);
}

/** The policy of a move as typed. */
export function policyOf(options: PolicyOptions): MigrationPolicy {
  const { downtimeBudget, bandwidth, postCopy, deadline, lanes, exactness } = options;
  return {
    downtimeBudgetMs: downtimeBudget === undefined
      ? defaultPolicy.downtimeBudgetMs : readDowntimeBudgetMs(downtimeBudget),
    bandwidthBytesPerSecond: bandwidth === undefined
      ? defaultPolicy.bandwidthBytesPerSecond : readBandwidth(bandwidth),
    postCopy: postCopy ?? defaultPolicy.postCopy,
    deadlineMs: deadline === undefined ? defaultPolicy.deadlineMs
      : readDurationMs({ text: deadline, option: '--deadline', bareUnit: 's' }),
    laneCount: lanes === undefined ? defaultPolicy.laneCount
      : readCount({ text: lanes, option: '--lanes', min: 1, max: limits.laneCountMax }),
    exactness: exactness ?? defaultExactness,
  };
}

/** Follows a move and answers its closing summary; Ctrl-C looks away and leaves it running. */
export async function watchToEnd(
  { context, migration, runId }: {
    readonly context: Context; readonly migration: MigrationId; readonly runId: string | null;
  },
): Promise<CommandResult> {
  const { world, backend } = context;
  const workflows = await backend.workflows();
  const url = workflows.workflowUrl({ workflowId: migration, runId });
  const links = { workflowId: migration, runId, workflowUrl: url };
  const outcome = await Promise.race([
    watchMove({ workflows, migration, sink: world.stderr, clock: world }),
    world.interrupted.then(() => null),
  ]);
  if (outcome !== null) return moveResult(outcome, links);
  return {
    exitCode: exitCodes.interrupted,
    fields: { outcome: 'running', ...links },
    lines: ['', `the move goes on; look again with: novacron migration watch ${migration}`],
  };
}

/** Starts the move, or joins the one of the same request; with `watch` to its end. */
export async function migrate(
  context: Context, vmText: string, options: MigrateOptions,
): Promise<CommandResult> {
  const { world, backend } = context;
  const vm = readVmName(vmText);
  const target = readHostName(options.to);
  const request = readRequestId({ text: options.request, world });
  const policy = policyOf(options);
  const workflows = await backend.workflows();
  const started = await workflows.startMove({ version: 1, vm, target, request, policy });
  const { migration, runId } = started;
  // A chosen request id may already stand for a move to another host: that is not the same request.
  if (started.target !== null && started.target !== target) {
    throw new CodedError('migration/open',
      `${migration} is the request to move ${vm} to ${started.target}, not to ${target}`);
  }
  const workflowUrl = workflows.workflowUrl({ workflowId: migration, runId });
  if (options.watch !== true) {
    return {
      exitCode: exitCodes.ok,
      fields: { outcome: 'running', workflowId: migration, runId, workflowUrl, vm, target },
      lines: [
        `${vm} is being moved to ${target}: ${migration}`,
        ...(workflowUrl === null ? [] : [`  ${workflowUrl}`]),
        `  watch it with: novacron migration watch ${migration}`,
      ],
    };
  }
  world.stderr.write(`${migration}${workflowUrl === null ? '' : `  ${workflowUrl}`}\n`);
  return watchToEnd({ context, migration, runId });
}

/** Options of a move, beside its bandwidth. */
export const withPolicyOptions = (command: Command): Command => command
  .option('--downtime-budget <time>', 'longest blackout to aim at, e.g. 100ms')
  .addOption(new Option('--post-copy <consent>',
    'may memory be fetched after the switchover, at the risk of a cold boot if a host dies')
    .choices(['never', 'when-needed']))
  .option('--deadline <time>', 'give up (the source goes on) when not in the blackout by then')
  .option('--lanes <count>', `parallel lanes, 1 to ${limits.laneCountMax}`)
  .addOption(new Option('--exactness <when>',
    'when both images are compared with what was sent: in the blackout, beside the running VM')
    .choices([...exactnessModes]));

export function addMigrateCommand(program: Command, context: Context): void {
  context.act(
    withPolicyOptions(program.command('migrate <vm>')
      .description('move a running VM to another host; the same --request joins a running move')
      .requiredOption('--to <host>', 'host that the VM moves to')
      .option('--watch', 'follow it to its end and print the summary')
      .option('--request <id>', 'id of this request; the same id is the same request')
      .option('--bandwidth <rate>', 'cap for all lanes together, e.g. 100MB, or none')),
    (vm: string, options: MigrateOptions) => migrate(context, vm, options),
  );
}
