/** Options of the demo, read and checked. */
import { Command, InvalidArgumentError } from 'commander';
import { limits } from '../../contracts/limits.ts';
import { mib, parseBytes } from '../../contracts/units.ts';

/** What the demo is asked to show. */
export interface DemoOptions {
  readonly memory: number;
  readonly vcpus: number;
  /** Null: as fast as the guest can. */
  readonly dirtyRate: number | null;
  readonly workingSet: number;
  /** 0: the guest keeps its data in memory only. */
  readonly disk: number;
  readonly down: boolean;
  readonly json: boolean;
}

const size = (text: string): number => {
  try {
    return parseBytes(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
};
const wholeMebibytes = (least: number) => (text: string): number => {
  const bytes = text === '0' && least === 0 ? 0 : size(text);
  if (bytes % mib !== 0 || bytes < least) {
    throw new InvalidArgumentError(`a whole number of MiB, at least ${least / mib}`);
  }
  return bytes;
};

/** Reads the command line (without node and script); throws commander's errors, exits on --help. */
export function readDemoOptions(argv: readonly string[]): DemoOptions {
  const program = new Command('demo')
    .description('Moves a running VM with a database between two hosts of a lab on this machine.')
    .option('--memory <size>', 'memory of the VM', wholeMebibytes(128 * mib), 512 * mib)
    .option('--vcpus <n>', 'vCPUs of the VM', (text) => {
      const value = Number(text);
      if (!Number.isInteger(value) || value < 1 || value > limits.vcpuCountMax) {
        throw new InvalidArgumentError(`1 to ${limits.vcpuCountMax}`);
      }
      return value;
    }, 1)
    .option('--dirty-rate <rate>', 'bytes that the guest rewrites a second, or max',
      // commander turns null into '', so "no limit" is infinity until the end.
      (text) => (text === 'max' ? Infinity : size(text.replace(/\/s$/, ''))), 20_000_000)
    .option('--working-set <size>', 'memory that it rewrites', size, 64 * mib)
    .option('--disk <size>', 'data disk of the VM, 0 for none', wholeMebibytes(0), 256 * mib)
    .option('--down', 'remove all that the demo made', false)
    .option('--json', 'the last line on standard output is one JSON object', false);
  const options = program.parse(argv, { from: 'user' }).opts<DemoOptions>();
  return { ...options, dirtyRate: options.dirtyRate === Infinity ? null : options.dirtyRate };
}
