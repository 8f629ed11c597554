/**
 * Runs the engine's parts alone (native/session/examples/engine_figures), without a VMM or a lab:
 * builds the program, hands its samples on, and removes the memory files that it leaves.
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { CodedError } from '../../contracts/failures.ts';
import { projectRoot } from '../guest-image.ts';
import { partSample } from './engine-summary.ts';
import type { PartSample } from './engine-summary.ts';

/** What is measured. Sizes are whole MiB. */
export interface EngineSeriesOptions {
  readonly memoryBytes: number;
  readonly dataBytes: number;
  readonly runs: number;
}

const memoryRoot = '/dev/shm';
const prefix = 'novacron-figures-';

/** Removes what runs that were killed have left: directories of processes that are gone. */
function sweep(): void {
  for (const name of readdirSync(memoryRoot)) {
    const pid = name.startsWith(prefix) ? name.slice(prefix.length) : null;
    if (pid !== null && !existsSync(`/proc/${pid}`)) {
      rmSync(join(memoryRoot, name), { recursive: true, force: true });
    }
  }
}

/** Failure: internal with the last words of cargo or of the program. */
export async function runEngineSeries(
  options: EngineSeriesOptions, onSample: (sample: PartSample) => void,
): Promise<PartSample[]> {
  sweep();
  const directory = join(memoryRoot, `${prefix}${process.pid}`);
  mkdirSync(directory, { mode: 0o700 });
  const child = spawn('cargo', [
    'run', '--release', '--package', 'novacron-session', '--example', 'engine_figures', '--',
    `memory=${options.memoryBytes}`, `data=${options.dataBytes}`, `runs=${options.runs}`,
    `directory=${directory}`,
  ], { cwd: join(projectRoot, 'native'), stdio: ['ignore', 'pipe', 'inherit'], detached: true });
  // cargo and the program are a group of their own, so that both end by one signal to it.
  const end = (): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // They are gone.
    }
  };
  const interrupted = (): void => {
    end();
    rmSync(directory, { recursive: true, force: true });
    process.exit(130);
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, interrupted);
  try {
    return await collect(child, onSample);
  } finally {
    end();
    rmSync(directory, { recursive: true, force: true });
  }
}

async function collect(
  child: ReturnType<typeof spawn>, onSample: (sample: PartSample) => void,
): Promise<PartSample[]> {
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', (cause) => {
      reject(new CodedError('input/invalid', `cargo could not be started: ${cause.message}`));
    });
    child.once('close', resolve);
  });
  ended.catch(() => undefined);
  const samples: PartSample[] = [];
  if (child.stdout !== null) {
    for await (const line of createInterface({ input: child.stdout })) {
      const sample = partSample.parse(JSON.parse(line));
      samples.push(sample);
      onSample(sample);
    }
  }
  const code = await ended;
  if (code !== 0) throw new CodedError('internal', `engine_figures ended with status ${code}`);
  return samples;
}
