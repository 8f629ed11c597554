/** `npm run bench -- engine`: the parts of the engine alone, beside the prototype and memcpy. */
import { InvalidArgumentError } from 'commander';
import type { Command } from 'commander';
import { parseBytes } from '../../contracts/units.ts';
import { runEngineSeries } from './engine-series.ts';
import { summariseParts, tellParts } from './engine-summary.ts';
import { count, size } from './options.ts';
import { openOutput, tell } from './surroundings.ts';

const explained = `
Parts, in the order in which they take turns (medians over --runs; GB are 10^9 bytes):
  scan-*            one collection of dirty pages, all of --memory populated: none, 500 scattered
                    pages, 5 % scattered, all of them dirty; ms
  memcpy            --data from one mapped and touched buffer to another, one thread
  pread             the guest's memory file read into a 1 MiB buffer
  pread-pwrite      and written to a fresh file: what the prototype called its copy
  …-digest          with the digest (blake3 of each page) computed once on each side
  digest            the digest alone
  aes-256-gcm-*     records of 16 KiB sealed and opened, as a TLS lane does it
  lane-KIND-N       the copy over N lanes (a thread on each side of each), without session: KIND is
                    memory (a queue, for tests), tcp (loopback, no TLS), tls (the product's)
  rounds-KIND-N     the engine itself: from the start of pre-copy until it has converged, digest on
                    both sides, N lanes
  last-pass-KIND-N  its last pass after 500 written pages until both digests are there; ms
  last-scan-KIND-N  the scan in it; ms
The prototype's figures are its published ones, of a machine of the same kind when quiet.`;

interface EngineFlags {
  readonly memory: number;
  readonly data: number;
  readonly runs: number;
  readonly json: boolean;
  readonly out?: string;
}

/** A size of whole MiB. */
function wholeMebibytes(text: string): number {
  const bytes = size(text);
  if (bytes > 0 && bytes % 1_048_576 === 0) return bytes;
  throw new InvalidArgumentError('whole MiB above 0, like 224MiB');
}

async function benchEngine(flags: EngineFlags): Promise<void> {
  if (flags.data > flags.memory) throw new InvalidArgumentError('--data is at most --memory');
  const output = openOutput(flags);
  let run = 0;
  const samples = await runEngineSeries({
    memoryBytes: flags.memory, dataBytes: flags.data, runs: flags.runs,
  }, (sample) => {
    if (sample.run !== run) tell(`run ${run = sample.run} of ${flags.runs}`);
    if (flags.json) output.line(sample, '');
  });
  const parts = summariseParts(samples);
  output.line({ msg: 'summary', parts, settings: flags }, tellParts(parts));
}

/** Adds the command. */
export function addEngineCommand(program: Command): void {
  program.command('engine')
    .description('Measures scans, copies, digest and encryption of the engine without a VMM.')
    .option('--memory <size>', 'memory that is scanned', wholeMebibytes, parseBytes('1GiB'))
    .option('--data <size>', 'data that is copied', wholeMebibytes, parseBytes('224MiB'))
    .option('--runs <n>', 'runs of each part', count, 5)
    .option('--json', 'one JSON line a measurement, the last line sums up', false)
    .option('--out <file>', 'add the JSON lines to this file')
    .addHelpText('after', explained)
    .action(async (flags: EngineFlags) => await benchEngine(flags));
}
