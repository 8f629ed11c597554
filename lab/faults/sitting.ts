/** What every sitting of a campaign on the command line needs: seed, commit, progress. */
import { execFileSync } from 'node:child_process';
import { InvalidArgumentError } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { projectRoot } from '../guest-image.ts';

/** A seed from the command line. */
export function seedOf(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value;
  throw new InvalidArgumentError('a whole number below 2^32');
}

const idLength = 12;
const git = (...words: string[]): string =>
  execFileSync('git', words, {
    cwd: projectRoot, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();

/** Short id of the commit, with a mark when files differ from it; results are no such files. */
export function commitOf(): string {
  try {
    const changes = git('status', '--porcelain', '--untracked-files=no', '--', ':/',
      ':(top,exclude)docs/measurements');
    return git('rev-parse', `--short=${idLength}`, 'HEAD') + (changes === '' ? '' : '+');
  } catch {
    return 'unknown';
  }
}

/**
 * Short ids of a commit and of those after it in the history of what is run now, without a mark:
 * a run of changed files counts for nobody else. Failure: input/invalid.
 */
export function commitsSince(first: string): Set<string> {
  try {
    const commit = git('rev-parse', '--verify', `${first}^{commit}`);
    git('merge-base', '--is-ancestor', commit, 'HEAD');
    const later = git('rev-list', '--ancestry-path', `${commit}..HEAD`).split('\n')
      .filter((id) => id !== '');
    return new Set([commit, ...later].map((id) => id.slice(0, idLength)));
  } catch {
    throw new CodedError('input/invalid', `--since ${first}: no commit of this history`);
  }
}

/** Lines on the terminal that replace each other; lines of their own where there is none. */
export function progressTo(stream: NodeJS.WriteStream): (text: string) => void {
  if (!stream.isTTY) return (text) => void stream.write(`… ${text}\n`);
  return (text) => void stream.write(`\r\u001b[K… ${text.slice(0, (stream.columns ?? 80) - 3)}`);
}

/** Aborts on the first signal, clears up, and ends the process. */
export function onInterrupt(interrupt: AbortController, clearUp: () => Promise<unknown>): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (interrupt.signal.aborted) return;
      interrupt.abort();
      void clearUp().finally(() => process.exit(130));
    });
  }
}
