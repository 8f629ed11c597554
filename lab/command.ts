/** Runs one short program to its end; what it means is decided by the caller. */
import { spawn } from 'node:child_process';
import { CodedError } from '../contracts/failures.ts';

/** Longest that a short program of the lab may take; ip, tc and nft answer in milliseconds. */
const commandMsMax = 60_000;

/** Options of `runCommand`. */
export interface CommandOptions {
  /** Written to the program's standard input. */
  readonly input?: string;
  /** Limit in ms; the program is killed afterwards. Default 60 s. */
  readonly timeoutMs?: number;
  /** Added to the environment. */
  readonly environment?: Readonly<Record<string, string>>;
}

/**
 * Runs a program without a shell and answers its standard output.
 * Throws CodedError `internal` with the last words of its error output when it fails.
 */
export async function runCommand(
  command: readonly string[], options: CommandOptions = {},
): Promise<string> {
  const [program = '', ...args] = command;
  return await new Promise<string>((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      timeout: options.timeoutMs ?? commandMsMax,
      killSignal: 'SIGKILL',
      env: { ...process.env, ...options.environment },
    });
    let output = '';
    let complaint = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (complaint += text));
    child.on('error', (cause) => {
      reject(new CodedError('internal', `${program} could not be run`, cause));
    });
    child.on('close', (status, signal) => {
      if (status === 0) resolve(output);
      else {
        const words = complaint.trim().slice(-400) || `exit ${status ?? signal}`;
        reject(new CodedError('internal', `${command.slice(0, 6).join(' ')}: ${words}`));
      }
    });
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input ?? '');
  });
}
