/** The end of a program of the lab that reads its command line with commander. */
import type { Command } from 'commander';
import { CodedError } from '../contracts/failures.ts';

/**
 * Runs what the command line says. A failure is one sentence on standard error, and the last line
 * on standard output, a JSON object with `mark`, by which the program tells its lines apart.
 */
export async function runCommandLine(
  program: Command, mark: Readonly<Record<string, 'failed'>>,
): Promise<void> {
  try {
    await program.parseAsync();
  } catch (error) {
    const report = error instanceof CodedError
      ? { code: error.code, message: error.message } : { code: 'internal', message: String(error) };
    process.stderr.write(`${program.name()}: ${report.message}\n`);
    process.stdout.write(`${JSON.stringify({ ...mark, ...report })}\n`);
    process.exitCode = 1;
  }
}
