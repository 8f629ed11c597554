/**
 * Runs a short program with an argument list, never through a shell, with a time and output limit.
 */
import { execFile } from 'node:child_process';
import { CodedError, type FailureCode } from '../../contracts/failures.ts';
import { takeOrdinaryPriority } from '../cpu-priority.ts';

/** `qemu-img` on a large image takes long; everything else here ends within a second. */
const programTimeoutMsDefault = 60_000;
const outputBytesMax = 4 * 1024 * 1024;

/** How a program is run; `uid` drops root before it touches what others wrote. */
export interface ProgramOptions {
  readonly failure: FailureCode;
  readonly environment?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Exit codes besides 0 that are answers and no failures. */
  readonly answerCodes?: readonly number[];
}

/**
 * Answers what the program wrote to stdout; throws `options.failure` with its stderr otherwise, and
 * `host/program-missing` where there is no such program.
 */
export function runProgram(argv: readonly string[], options: ProgramOptions): Promise<string> {
  const [program = '', ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      args,
      {
        timeout: options.timeoutMs ?? programTimeoutMsDefault,
        maxBuffer: outputBytesMax,
        env: { ...process.env, ...options.environment },
        ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.gid ?? options.uid }),
      },
      (error, stdout, stderr) => {
        const isAnswer =
          error !== null &&
          typeof error.code === 'number' &&
          options.answerCodes?.includes(error.code) === true;
        if (error === null || isAnswer) return resolve(stdout);
        if (error.code === 'ENOENT') {
          return reject(new CodedError('host/program-missing', program));
        }
        const what = argv.join(' ').slice(0, 200);
        reject(
          new CodedError(
            options.failure,
            `${what}: ${stderr.trim().slice(0, 400) || error.message}`,
          ),
        );
      },
    );
    // A conversion of an image is not in a hurry, as what this process itself does is.
    if (child.pid !== undefined) takeOrdinaryPriority(child.pid);
  });
}
