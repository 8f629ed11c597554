/** `novacron host evacuate|drain` and `novacron evacuation …`: empty a host, look, command. */
import { Option } from 'commander';
import type { Command } from 'commander';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type {
  EvacuationCommand, EvacuationOrder, EvacuationOutcome, EvacuationPolicy, MoveWindow,
} from '../../contracts/evacuation.ts';
import { CodedError } from '../../contracts/failures.ts';
import { evacuationId } from '../../contracts/identity.ts';
import type { HostName } from '../../contracts/identity.ts';
import { limits } from '../../contracts/limits.ts';
import type { EvacuationView } from '../../payloads/evacuation-client.ts';
import {
  readBandwidth, readCount, readHostName, readRequestId, readVmName,
} from '../context.ts';
import type { Context } from '../context.ts';
import { exitCodeOfEvacuation, exitCodes } from '../exit-codes.ts';
import type { CommandResult } from '../output.ts';
import { formatMillis } from '../progress.ts';
import { evacuationLine, rowText, watchEvacuation } from '../watch-evacuation.ts';
import { policyOf, withPolicyOptions } from './migrate.ts';
import type { PolicyOptions } from './migrate.ts';

interface EvacuateOptions extends PolicyOptions {
  readonly to?: string;
  readonly concurrency?: string;
  readonly order?: EvacuationOrder;
  readonly first?: string;
  readonly window?: string;
  readonly watch?: boolean;
  readonly request?: string;
}

const listOf = (text: string): string[] => text.split(',').map((word) => word.trim());
const readConcurrency = (text: string): number => readCount({
  text, option: '--concurrency', min: 1, max: limits.evacuationConcurrencyMax });

/** "22:00-06:00", hours of the day in UTC. */
export function readWindow(text: string): MoveWindow {
  const match = /^(\d{2}):(\d{2})-(\d{2}):(\d{2})$/.exec(text);
  const [fromHour = 24, fromMinute = 60, untilHour = 24, untilMinute = 60] =
    (match ?? []).slice(1).map(Number);
  if (Math.max(fromHour, untilHour) > 23 || Math.max(fromMinute, untilMinute) > 59) {
    throw new CodedError('input/invalid',
      `--window ${JSON.stringify(text.slice(0, 40))}: write 22:00-06:00, hours of the day in UTC`);
  }
  return { fromMinute: fromHour * 60 + fromMinute, untilMinute: untilHour * 60 + untilMinute };
}

function evacuationPolicyOf(options: EvacuateOptions, cordon: boolean): EvacuationPolicy {
  const { to, concurrency, bandwidth, order, first, window, ...move } = options;
  return {
    ...defaultEvacuationPolicy, cordon, move: policyOf(move),
    targets: to === undefined ? null : listOf(to).map(readHostName),
    first: first === undefined ? [] : listOf(first).map(readVmName),
    window: window === undefined ? null : readWindow(window),
    ...(concurrency === undefined ? {} : { concurrency: readConcurrency(concurrency) }),
    ...(bandwidth === undefined ? {} : { bandwidthBytesPerSecond: readBandwidth(bandwidth) }),
    ...(order === undefined ? {} : { order }),
  };
}

/** Result of an evacuation that ended. */
function evacuationResult(outcome: EvacuationOutcome, workflowUrl: string | null): CommandResult {
  const { kind, host, movedCount, skipped, totalMs, movesMs, by, failure } = outcome;
  const headline = kind === 'completed' ? `${host} is empty: ${movedCount} VMs moved`
    : kind === 'partial' ? `${skipped.length} VMs are still on ${host}, ${movedCount} moved`
      : kind === 'cancelled' ? `cancelled by ${by ?? '?'}: ${movedCount} VMs moved, `
        + `${skipped.length} stay on ${host}`
        : `the evacuation of ${host} failed: ${failure?.message ?? ''} (${failure?.code ?? ''}): `
          + `${failure?.detail ?? ''}`;
  return {
    exitCode: exitCodeOfEvacuation(outcome),
    fields: { outcome: kind, workflowId: evacuationId(host), workflowUrl, host, movedCount,
      skipped, totalMs, movesMs, by, ...(failure === null ? {} : { failure }) },
    lines: [
      headline,
      `  total      ${formatMillis(totalMs)}; one after the other the moves would have taken `
        + formatMillis(movesMs),
      ...skipped.flatMap(({ vm, failure: { code, message, detail, remedy } }) => [
        `  ${vm}: ${message} (${code}): ${detail}`, `    what to do: ${remedy}`]),
      ...(workflowUrl === null ? [] : [`  ${workflowUrl}`]),
    ],
  };
}

/** Follows it to its end; Ctrl-C looks away and leaves it running. */
async function watchToEnd(context: Context, host: HostName): Promise<CommandResult> {
  const { world, backend } = context;
  const workflows = await backend.workflows();
  const workflowUrl = workflows.workflowUrl({ workflowId: evacuationId(host), runId: null });
  const outcome = await Promise.race([
    watchEvacuation({ workflows, host, sink: world.stderr, clock: world }),
    world.interrupted.then(() => null),
  ]);
  return outcome !== null ? evacuationResult(outcome, workflowUrl) : {
    exitCode: exitCodes.interrupted,
    fields: { outcome: 'running', workflowId: evacuationId(host), workflowUrl, host },
    lines: ['', `it goes on; look again with: novacron evacuation watch ${host}`],
  };
}

async function evacuate(
  { context, text, options, cordon }: {
    context: Context; text: string; options: EvacuateOptions; cordon: boolean;
  },
): Promise<CommandResult> {
  const { world, backend } = context;
  const host = readHostName(text);
  const request = readRequestId({ text: options.request, world });
  const policy = evacuationPolicyOf(options, cordon);
  const workflows = await backend.workflows();
  const { runId, joined } = await workflows.startEvacuation({ version: 1, host, request, policy });
  const workflowId = evacuationId(host);
  const workflowUrl = workflows.workflowUrl({ workflowId, runId });
  if (options.watch === true) {
    world.stderr.write(`${workflowId}${workflowUrl === null ? '' : `  ${workflowUrl}`}\n`);
    return watchToEnd(context, host);
  }
  return {
    exitCode: exitCodes.ok,
    fields: { outcome: 'running', workflowId, runId, workflowUrl, host, request, joined },
    lines: [
      `${host} is being ${cordon ? 'drained' : 'evacuated'}: ${workflowId}`
        + `${joined ? ' (joined the running one)' : ''}`,
      ...(workflowUrl === null ? [] : [`  ${workflowUrl}`]),
      `  watch it with: novacron evacuation watch ${host}`,
    ],
  };
}

function viewLines(view: EvacuationView): string[] {
  const { status, progress } = view;
  return [`${status.host}, request ${status.request}`,
    `  ${evacuationLine(view, progress.percent)}`,
    ...status.rows.map((row) => `  ${rowText(row, view)}`)];
}

async function show(context: Context, text: string): Promise<CommandResult> {
  const host = readHostName(text);
  const workflows = await context.backend.workflows();
  const view = await workflows.viewEvacuation(host);
  const workflowUrl = workflows.workflowUrl({ workflowId: evacuationId(host), runId: null });
  const { status, progress, closedAs } = view;
  if (status.outcome !== null) {
    return { ...evacuationResult(status.outcome, workflowUrl), exitCode: exitCodes.ok };
  }
  return {
    exitCode: exitCodes.ok,
    fields: { outcome: closedAs ?? 'running', workflowId: evacuationId(host), workflowUrl, status,
      progress, moves: [...view.moves.values()] },
    lines: [...viewLines(view), ...(workflowUrl === null ? [] : [`  ${workflowUrl}`])],
  };
}

async function command(
  { context, text, commands }: {
    context: Context; text: string; commands: readonly EvacuationCommand[];
  },
): Promise<CommandResult> {
  const host = readHostName(text);
  const workflows = await context.backend.workflows();
  for (const one of commands) await workflows.commandEvacuation({ host, command: one });
  const done = commands.map(({ kind }) => kind);
  return {
    exitCode: exitCodes.ok,
    fields: { workflowId: evacuationId(host), host, done },
    lines: [`${evacuationId(host)}: ${done.join(', ')}`],
  };
}

function settings(
  { bandwidth, concurrency }: { readonly bandwidth?: string; readonly concurrency?: string },
): EvacuationCommand[] {
  const commands: EvacuationCommand[] = [
    ...(bandwidth === undefined ? [] : [{ kind: 'set-bandwidth' as const,
      bandwidthBytesPerSecond: readBandwidth(bandwidth) }]),
    ...(concurrency === undefined ? [] : [{ kind: 'set-concurrency' as const,
      concurrency: readConcurrency(concurrency) }]),
  ];
  if (commands.length > 0) return commands;
  throw new CodedError('input/invalid', 'nothing to set: write --bandwidth or --concurrency');
}

/** `host evacuate` and `host drain`. */
export function addEvacuateCommands(host: Command, context: Context): void {
  const { act } = context;
  const { concurrency } = defaultEvacuationPolicy;
  const options = (one: Command): Command => withPolicyOptions(one
    .option('--to <hosts>', 'only to these hosts, separated by commas; else to all that take VMs')
    .option('--concurrency <count>', `moves at a time, 1 to ${limits.evacuationConcurrencyMax}; `
      + `${concurrency} if not said`)
    .option('--bandwidth <rate>', 'cap for all moves together, e.g. 100MB, or none')
    .addOption(new Option('--order <order>', 'which VMs begin')
      .choices(['large-first', 'small-first', 'name']))
    .option('--first <vms>', 'before all others, separated by commas')
    .option('--window <hours>', 'moves begin only in these hours of the day (UTC), 22:00-06:00')
    .option('--watch', 'follow it to its end and print the summary')
    .option('--request <id>', 'id of this request; the same id joins the running evacuation'));
  act(options(host.command('evacuate <host>')
    .description('move all its VMs to other hosts, several at a time; skips and reports the rest')),
  (text: string, given: EvacuateOptions) =>
    evacuate({ context, text, options: given, cordon: false }));
  act(options(host.command('drain <host>')
    .description('cordon it, then evacuate it; `host uncordon` lets it take VMs again')),
  (text: string, given: EvacuateOptions) =>
    evacuate({ context, text, options: given, cordon: true }));
}

export function addEvacuationCommands(program: Command, context: Context): void {
  const { act, world } = context;
  const group = program.command('evacuation').description('look at evacuations and command them');
  const by = (): string => world.environment['SUDO_USER'] ?? world.environment['USER']
    ?? 'operator';
  act(group.command('show <host>').description('the running evacuation of a host, or its last'),
    (text: string) => show(context, text));
  act(group.command('watch <host>').description('follow it to its end'),
    (text: string) => watchToEnd(context, readHostName(text)));
  act(group.command('pause <host>').description('begin no move; moves that copy pause'),
    (text: string) => command({ context, text, commands: [{ kind: 'pause' }] }));
  act(group.command('resume <host>').description('go on'),
    (text: string) => command({ context, text, commands: [{ kind: 'resume' }] }));
  act(group.command('cancel <host>')
    .description('begin no move, and cancel those before their point of no return'),
  (text: string) => command({ context, text, commands: [{ kind: 'cancel', by: by() }] }));
  act(group.command('set <host>').description('change limits while it runs')
    .option('--bandwidth <rate>', 'cap for all moves together, e.g. 100MB, or none')
    .option('--concurrency <count>', 'moves at a time'),
  async (text: string, options: { bandwidth?: string; concurrency?: string }) =>
    command({ context, text, commands: settings(options) }));
}
