/**
 * Pages of the documentation that are generated from the sources: the failure list and the command
 * reference. Pure; infra/docs/generate.mjs writes them, a test compares them.
 */
import type { Argument, Command, Option } from 'commander';
import { failures } from '../contracts/failures.ts';
import { exitCodeMeanings, exitCodeOfFailure } from './exit-codes.ts';

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
const notice = (source: string): string =>
  `<!-- Generated from ${source} by \`node infra/docs/generate.mjs\`. Do not edit. -->`;

/** docs/failures.md: every code, what it means, who acts, what to do. */
export function failuresPage(): string {
  const rows = Object.entries(failures).map(([code, { message, retryable, actor, remedy }]) =>
    `| \`${code}\` | ${cell(message)} | ${retryable ? 'yes' : 'no'} | ${actor} | `
      + `${exitCodeOfFailure(code as keyof typeof failures)} | ${cell(remedy)} |`);
  return [
    notice('contracts/failures.ts'), '', '# Failures', '',
    'Every error that leaves a process carries one of these codes. Retryable ones are repeated by',
    'Temporal; "exit" is the exit code of `novacron` (docs/api/cli.md).', '',
    '| code | what happened | retried | who acts | exit | what to do |',
    '|---|---|---|---|---|---|', ...rows, '',
  ].join('\n');
}

const isShown = (command: Command): boolean =>
  command.name() !== 'help' && !(command as Command & { _hidden?: boolean })._hidden;

function argumentRows(command: Command): string[] {
  const argument = (one: Argument): string => `| \`${one.required ? `<${one.name()}>`
    : `[${one.name()}]`}\` | ${cell(one.description || (one.argChoices?.join(', ') ?? ''))} | |`;
  const option = (one: Option): string => {
    const value: unknown = one.defaultValue;
    const standard = value === undefined || typeof value === 'boolean'
      || (Array.isArray(value) && value.length === 0) ? '' : `\`${String(value)}\``;
    const choices = one.argChoices === undefined ? '' : ` (${one.argChoices.join(', ')})`;
    return `| \`${cell(one.flags)}\`${one.mandatory ? ' (required)' : ''} `
      + `| ${cell(one.description + choices)} | ${standard} |`;
  };
  return [...command.registeredArguments.map(argument), ...command.options.map(option)];
}

function sections(command: Command, path: string): string[] {
  return command.commands.filter(isShown).flatMap((one) => {
    const name = `${path} ${one.name()}`;
    const rows = argumentRows(one);
    const isGroup = one.commands.some(isShown);
    return [
      `${isGroup ? '##' : '###'} ${name}`, '',
      `${cell(one.description())}.`.replace(/\.\.$/, '.'), '',
      ...(rows.length === 0 ? [] : ['| | | default |', '|---|---|---|', ...rows, '']),
      ...sections(one, name),
    ];
  });
}

/** A page of docs/api for one program. */
export function programPage(
  { program, source, preface }: {
    readonly program: Command; readonly source: string; readonly preface: readonly string[];
  },
): string {
  const rows = argumentRows(program);
  return [
    notice(source), '', `# ${program.name()}`, '', program.description(), '', ...preface,
    '## Options of every command', '', '| | | default |', '|---|---|---|', ...rows, '',
    ...sections(program, program.name()),
  ].join('\n');
}

/** What docs/api/cli.md says before the commands. */
export const cliPreface: readonly string[] = [
  'Answers go to stdout, progress and hints to stderr. With `--json` the last line of stdout is',
  'one JSON object `{version, command, ok, exitCode, …}`, in success and in failure; a failure has',
  '`failure: {code, message, detail, remedy}` with a code of [failures.md](../failures.md).', '',
  '## Exit codes', '', '| code | meaning |', '|---|---|',
  ...Object.entries(exitCodeMeanings).map(([code, meaning]) => `| ${code} | ${cell(meaning)} |`),
    '',
  'A move is named by its id `migrate/VM/REQUEST`, or by the name of its VM: then its open move,',
  'else its last one. Rates and sizes: `100MB` is 100 000 000 bytes, `100M` and `100MiB` are',
  '104 857 600. Times: `500ms`, `90s`, `10m`, `2h`.', '',
];
