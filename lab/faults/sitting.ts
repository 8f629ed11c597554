/** What every sitting of a campaign on the command line needs: its seed, its commit, its progress. */
import { execFileSync } from 'node:child_process';
import { InvalidArgumentError } from 'commander';
import { projectRoot } from '../guest-image.ts';

/** A seed from the command line. */
export function seedOf(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value;
  throw new InvalidArgumentError('a whole number below 2^32');
}

/** Short id of the commit, with a mark when files differ from it. */
export function commitOf(): string {
  const git = (...words: string[]): string =>
    execFileSync('git', words, { cwd: projectRoot, encoding: 'utf8' }).trim();
  try {
    return git('rev-parse', '--short=12', 'HEAD')
      + (git('status', '--porcelain', '--untracked-files=no') === '' ? '' : '+');
  } catch {
    return 'unknown';
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
