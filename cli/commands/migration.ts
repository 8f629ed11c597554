/** `novacron migration …`: lists moves, looks at them and commands them. */
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import type { MigrationStatus, SessionCommand } from '../../contracts/migration.ts';
import type { MoveView } from '../backend.ts';
import { findMigration, readBandwidth, readCount, readVmName } from '../context.ts';
import type { Context } from '../context.ts';
import { exitCodes } from '../exit-codes.ts';
import { failureOfError } from '../failure-of-error.ts';
import { table } from '../output.ts';
import type { CommandResult } from '../output.ts';
import { adviceLines, outlookAdvice } from '../outlook.ts';
import { nextView, progressLine } from '../progress.ts';
import { moveResult } from '../summary.ts';
import { readDowntimeBudgetMs, watchToEnd } from './migrate.ts';

const listCountMax = 1_000;
const time = (ms: number | null): string =>
  ms === null ? '' : new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');

async function list(
  context: Context,
  options: { readonly vm?: string; readonly open?: boolean; readonly limit: string },
): Promise<CommandResult> {
  const vm = options.vm === undefined ? null : readVmName(options.vm);
  const countMax = readCount({ text: options.limit, option: '--limit', min: 1, max: listCountMax });
  const workflows = await context.backend.workflows();
  const migrations = await workflows.listMoves({ vm, openOnly: options.open === true, countMax });
  return {
    exitCode: exitCodes.ok,
    fields: { migrations },
    lines: migrations.length === 0 ? ['no moves'] : table(
      ['MIGRATION', 'FROM', 'TO', 'STATE', 'STARTED'],
      migrations.map((row) => [row.migration, row.source, row.target,
        row.phase === '' ? row.outcome : row.phase, time(row.startedAtMs)])),
  };
}

function statusLines(
  migration: string, { status, check }: Pick<MoveView, 'status' | 'check'>,
): string[] {
  const view = nextView(null, { status, heartbeat: null, check });
  const { policy } = status;
  const advice = outlookAdvice({ migration, status });
  const { bandwidthBytesPerSecond: cap } = policy;
  return [
    `${status.vm}: ${status.source ?? '?'} → ${status.target}`,
    `  ${progressLine(view, null)}`,
    `  budget ${policy.downtimeBudgetMs} ms, post-copy ${policy.postCopy}, bandwidth `
      + `${cap === 0 ? 'unlimited' : `${cap} B/s`}`
      + `, ${policy.laneCount} lanes`,
    ...(status.pointOfNoReturnPassed ? ['  past the point of no return'] : []),
    ...(advice === null ? [] : adviceLines(advice).map((line) => `  ${line}`)),
  ];
}

async function show(context: Context, text: string): Promise<CommandResult> {
  const migration = await findMigration({ text, backend: context.backend });
  const workflows = await context.backend.workflows();
  const view = await workflows.viewMove(migration);
  const { status, check, attempt, lastFailure } = view;
  const workflowUrl = workflows.workflowUrl({ workflowId: migration, runId: null });
  const links = { workflowId: migration, runId: null, workflowUrl };
  if (status.outcome !== null) {
    return { ...moveResult(status.outcome, links), exitCode: exitCodes.ok };
  }
  return {
    exitCode: exitCodes.ok,
    fields: { outcome: 'running', ...links, status, check, attempt, lastFailure },
    lines: [...statusLines(migration, view),
      ...(lastFailure === null ? [] : [`  being repeated: ${lastFailure}`]),
      ...(workflowUrl === null ? [] : [`  ${workflowUrl}`])],
  };
}

async function watch(context: Context, text: string): Promise<CommandResult> {
  const migration = await findMigration({ text, backend: context.backend });
  return watchToEnd({ context, migration, runId: null });
}

async function command(
  { context, text, commands }: {
    context: Context; text: string; commands: readonly SessionCommand[];
  },
): Promise<CommandResult> {
  const migration = await findMigration({ text, backend: context.backend });
  const workflows = await context.backend.workflows();
  let status: MigrationStatus | null = null;
  for (const one of commands) {
    const done = workflows.commandMove({ migration, command: one });
    status = await done.catch(async (error: unknown) => {
      // Temporal takes no update for a run that has ended, and says that there is none.
      const { status: { outcome } } = failureOfError(error).code === 'migration/unknown'
        ? await workflows.viewMove(migration) : { status: { outcome: null } };
      throw outcome === null ? error
        : new CodedError('migration/unknown', `${migration} has ended: ${outcome.kind}`, error);
    });
  }
  if (status === null) throw new CodedError('input/invalid', 'nothing to do');
  return {
    exitCode: exitCodes.ok,
    fields: { workflowId: migration, done: commands.map(({ kind }) => kind), status },
    lines: [`${migration}: ${commands.map(({ kind }) => kind).join(', ')}`,
      ...statusLines(migration, { status, check: null })],
  };
}

function settings(
  options: { readonly bandwidth?: string; readonly downtimeBudget?: string },
): SessionCommand[] {
  const { bandwidth, downtimeBudget } = options;
  const commands: SessionCommand[] = [
    ...(bandwidth === undefined ? [] : [{ kind: 'set-bandwidth' as const,
      bandwidthBytesPerSecond: readBandwidth(bandwidth) }]),
    ...(downtimeBudget === undefined ? [] : [{ kind: 'set-downtime-budget' as const,
      downtimeBudgetMs: readDowntimeBudgetMs(downtimeBudget) }]),
  ];
  if (commands.length > 0) return commands;
  throw new CodedError('input/invalid', 'nothing to set: write --bandwidth or --downtime-budget');
}

export function addMigrationCommands(program: Command, context: Context): void {
  const { act, world } = context;
  const migration = program.command('migration').description('look at moves and command them');
  const by = (): string => world.environment['SUDO_USER'] ?? world.environment['USER']
    ?? 'operator';
  const one = '<migration>';
  const about = 'MIGRATION is migrate/VM/REQUEST, or the name of a VM for its open or last move.';
  act(migration.command('list').description('moves, newest first')
    .option('--vm <vm>', 'only of this VM').option('--open', 'only those that run')
    .option('--limit <count>', 'at most so many', '50'),
  (options: { vm?: string; open?: boolean; limit: string }) => list(context, options));
  act(migration.command(`show ${one}`).description(`one move as it is now. ${about}`),
    (text: string) => show(context, text));
  act(migration.command(`watch ${one}`).description('follow a move to its end'),
    (text: string) => watch(context, text));
  act(migration.command(`pause ${one}`).description('stop copying; the VM runs on at the source'),
    (text: string) => command({ context, text, commands: [{ kind: 'pause' }] }));
  act(migration.command(`resume ${one}`).description('go on copying'),
    (text: string) => command({ context, text, commands: [{ kind: 'resume' }] }));
  act(migration.command(`cancel ${one}`)
    .description('give the move up; refused after the point of no return'),
  (text: string) => command({ context, text, commands: [{ kind: 'cancel', by: by() }] }));
  act(migration.command(`set ${one}`).description('change limits of a running move')
    .option('--bandwidth <rate>', 'cap for all lanes together, e.g. 100MB, or none')
    .option('--downtime-budget <time>', 'longest blackout to aim at, e.g. 100ms'),
  async (text: string, options: { bandwidth?: string; downtimeBudget?: string }) =>
    command({ context, text, commands: settings(options) }));
  act(migration.command(`post-copy ${one}`)
    .description('switch over now and fetch the rest afterwards; needs consent in the request'),
  (text: string) => command({ context, text, commands: [{ kind: 'post-copy-now' }] }));
}
