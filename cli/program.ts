/**
 * The command tree of `novacron` and one run of it: parse, act, print, exit code. What the commands
 * do is in commands/; what is outside is in `World`.
 */
import { Command, CommanderError } from 'commander';
import { failureReport } from '../contracts/failures.ts';
import type { FailureReport } from '../contracts/failures.ts';
import { addCertCommands } from './commands/cert.ts';
import { addChildCommands, childPrograms } from './commands/children.ts';
import { addCompletionCommands } from './commands/completion.ts';
import { addEvacuationCommands } from './commands/evacuation.ts';
import { addFailoverCommand } from './commands/failover.ts';
import { addHostCommands } from './commands/host.ts';
import { addMigrateCommand } from './commands/migrate.ts';
import { addMigrationCommands } from './commands/migration.ts';
import { addRebalanceCommand } from './commands/rebalance.ts';
import { addVmCommands } from './commands/vm.ts';
import { addWhyCommand } from './commands/why.ts';
import type { Backend } from './backend.ts';
import type { Context, World } from './context.ts';
import { exitCodeOfFailure, exitCodes } from './exit-codes.ts';
import { failureOfError } from './failure-of-error.ts';
import { failureLines, printable, printResult } from './output.ts';
import type { CommandResult } from './output.ts';

/** Words of a command from the root: 'vm list'. */
function pathOf(command: Command): string {
  const names: string[] = [];
  for (let one: Command | null = command; one?.parent; one = one.parent) names.unshift(one.name());
  return names.join(' ');
}

interface Run {
  result: CommandResult | null;
  command: string;
  /** Exit code of a program that printed its own answer. */
  childCode: number | null;
}

/** Builds the tree; `run` collects what the chosen command answers. */
function buildTree({ world, run, backend }: { world: World; run: Run; backend: Backend }): Command {
  const program = new Command('novacron')
    .description('Moves running virtual machines between hosts, as durable workflows.')
    .option('--json', 'last line on stdout is one JSON object')
    .option('--config <file>',
      'configuration; else NOVACRON_CONFIG, ~/.config/novacron/config.json, '
      + 'the lab\'s')
    .enablePositionalOptions(false)
    .showSuggestionAfterError();
  const context: Context = {
    world, backend,
    json: () => program.opts<{ json?: boolean }>().json === true,
    act: (command, action) => command.action(async (...args: unknown[]) => {
      run.command = pathOf(command);
      // Commander hands over arguments, options and the command itself, which actions do not take.
      run.result = await action(...args.slice(0, -1) as Parameters<typeof action>);
    }),
  };
  addHostCommands(program, context);
  addVmCommands(program, context);
  addMigrateCommand(program, context);
  addMigrationCommands(program, context);
  addEvacuationCommands(program, context);
  addFailoverCommand(program, context);
  addRebalanceCommand(program, context);
  addWhyCommand(program, context);
  addChildCommands({ program, context, onExit: (code) => { run.childCode = code; } });
  addCertCommands(program, context);
  addCompletionCommands(program, context);
  return program;
}

/** The tree alone, for the reference and completion: its actions are never run, so need nothing. */
export const describeProgram = (): Command => buildTree({
  world: {} as World, backend: {} as Backend, run: { result: null, command: '', childCode: null },
});

const placesOf = (world: World, flag: string | null) => ({ flag, environment: world.environment,
  workingDirectory: world.workingDirectory, projectDirectory: world.projectDirectory });

/**
 * --config before commander has parsed: the backend is made first, and reads it when first used.
 */
function configFlag(argv: readonly string[]): string | null {
  const at = argv.findIndex((word) => word === '--config' || word.startsWith('--config='));
  const word = at < 0 ? undefined : argv[at];
  return word === undefined ? null : word.includes('=') ? word.slice(word.indexOf('=') + 1)
    : argv[at + 1] ?? null;
}

function prepare(command: Command, world: World): void {
  command.exitOverride().configureOutput({
    writeOut: (text) => world.stdout.write(text),
    writeErr: (text) => world.stderr.write(text),
  });
  for (const one of command.commands) prepare(one, world);
}

function reportFailure(
  { world, json, command, failure, told }: {
    world: World; json: boolean; command: string; failure: FailureReport; told: boolean;
  },
): number {
  const exitCode = exitCodeOfFailure(failure.code);
  if (!told) world.stderr.write(`${failureLines(failure).map(printable).join('\n')}\n`);
  if (json) {
    printResult({ command, json, stdout: world.stdout,
      result: { exitCode, fields: { failure }, lines: [] } });
  }
  return exitCode;
}

/** Runs one command line and answers the exit code; everything it prints goes to the world. */
export async function runCommandLine(
  { argv, world }: { readonly argv: readonly string[]; readonly world: World },
): Promise<number> {
  const run: Run = { result: null, command: '', childCode: null };
  const backend = world.openBackend(placesOf(world, configFlag(argv)));
  const program = buildTree({ world, run, backend });
  prepare(program, world);
  const json = argv.includes('--json');
  const child = argv.findIndex((word) => Object.hasOwn(childPrograms, word));
  try {
    await program.parseAsync([...argv], { from: 'user' });
    if (run.childCode !== null) return run.childCode;
    if (run.result === null) return exitCodes.ok;
    printResult({ result: run.result, command: run.command, json, stdout: world.stdout });
    return run.result.exitCode;
  } catch (error) {
    if (error instanceof CommanderError) {
      const asked = error.code === 'commander.helpDisplayed' || error.code === 'commander.version'
        || (error.code === 'commander.help' && error.exitCode === 0);
      if (asked) return exitCodes.ok;
      const detail = error.message.replace(/^error: /, '');
      const failure = failureReport('input/invalid',
        detail === '(outputHelp)' ? 'a command is missing' : detail);
      return reportFailure({ world, json: json && child < 0, command: run.command, failure,
        told: true });
    }
    return reportFailure({ world, json, command: run.command, failure: failureOfError(error),
      told: false });
  } finally {
    await backend.close().catch(() => undefined);
  }
}
