/**
 * How answers reach people and scripts: text on stdout, or with `--json` exactly one JSON object as
 * the last line of stdout; progress and hints always on stderr. Decides no content.
 */
import type { FailureReport } from '../contracts/failures.ts';
import type { ExitCode } from './exit-codes.ts';

/** What a command hands back: fields for `--json`, lines for people, the exit code. */
export interface CommandResult {
  readonly exitCode: ExitCode;
  readonly fields: Readonly<Record<string, unknown>>;
  readonly lines: readonly string[];
}

/** Where text goes; `columns` is null when it is not a terminal. */
export interface TextSink {
  write(text: string): void;
  readonly columns: number | null;
}

/** Text without control characters: names and causes come from other machines. */
export const printable = (text: string): string =>
  // oxlint-disable-next-line no-control-regex -- these are what has to go
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '\ufffd');

/** Columns padded to their widest cell, two spaces between; '' for no rows but the head. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const all = [head, ...rows].map((row) => row.map(printable));
  const widths = head.map((_, column) =>
    Math.max(...all.map((row) => (row[column] ?? '').length)));
  return all.map((row) =>
    row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ').trimEnd());
}

/** Prints a result; `command` names what was asked in the JSON object. */
export function printResult({ result, command, json, stdout }: {
  readonly result: CommandResult; readonly command: string; readonly json: boolean;
  readonly stdout: TextSink;
}): void {
  if (json) {
    const { exitCode, fields } = result;
    stdout.write(
      `${JSON.stringify({ version: 1, command, ok: exitCode === 0, exitCode, ...fields })}\n`);
    return;
  }
  for (const line of result.lines) stdout.write(`${printable(line)}\n`);
}

/** A failure in the four parts that people need. */
export const failureLines = ({ code, message, detail, remedy }: FailureReport): string[] => [
  `novacron: ${message} (${code})`,
  ...(detail === '' ? [] : [`  where: ${detail}`]),
  `  what to do: ${remedy}`,
];
