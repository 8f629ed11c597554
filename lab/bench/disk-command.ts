/** `npm run bench -- disk`: moves of a guest whose disk is in use, beside a plain copy. */
import type { Command } from 'commander';
import { formatBytes, parseBytes } from '../../contracts/units.ts';
import { quantile } from '../client/gaps.ts';
import { runDiskSeries } from './disk-series.ts';
import type { DiskRecord } from './disk-series.ts';
import { shapeLink } from './migrate-command.ts';
import { count, finiteOrNull, listOf, oneOf, rate, size, withSurroundings } from './options.ts';
import { inLab, openOutput, raisePlant } from './surroundings.ts';
import { tellRun } from './table.ts';

interface DiskFlags {
  readonly size: number;
  readonly used: number;
  readonly formats: ('raw' | 'qcow2')[];
  readonly writeRates: number[];
  readonly memory: number;
  readonly vcpus: number;
  readonly runs: number;
  readonly rate?: number;
  readonly postCopy: 'never' | 'when-needed';
  readonly guest: string;
  readonly qemu: string;
  readonly json: boolean;
  readonly out?: string;
}

const tellDiskRun = (record: DiskRecord): string =>
  `${record.format.padEnd(5)} written at ${formatBytes(record.writtenBytesPerSecond ?? 0)}/s  `
  + `${tellRun(record)}  disk ${record.diskMs ?? '-'} ms, plain copy ${record.plainCopyMs} ms, `
  + `ratio ${record.ratio ?? '-'}, ${record.comparison === null ? 'not compared'
    : `${record.comparison.unequalBlocks} of ${record.comparison.blocks} blocks differ`}`;

async function benchDisk(flags: DiskFlags): Promise<void> {
  const output = openOutput(flags);
  await inLab(flags, async (surroundings) => {
    const policy = { postCopy: flags.postCopy, downtimeBudgetMs: 100 };
    const plant = await raisePlant(surroundings, policy);
    try {
      await shapeLink(surroundings.lab, flags);
      const records = await runDiskSeries({
        formats: flags.formats, sizeBytes: flags.size, usedBytes: flags.used,
        writeBytesPerSecond: flags.writeRates.map(finiteOrNull), runs: flags.runs,
        memoryBytes: flags.memory, vcpuCount: flags.vcpus,
      }, { ...surroundings, plant }, (record) => output.line(record, tellDiskRun(record)));
      const ratios = records.flatMap(({ ratio }) => (ratio === null ? [] : [ratio]));
      const summary = {
        msg: 'summary', runs: records.length,
        verified: records.filter((record) => record.guestVerified).length,
        ratioMedian: quantile(ratios, 0.5), ratioMax: Math.max(0, ...ratios), settings: flags,
      };
      output.line(summary, JSON.stringify(summary));
      if (summary.verified < summary.runs) process.exitCode = 1;
    } finally {
      await plant.close();
    }
  });
}

/** Adds the command. */
export function addDiskCommand(program: Command): void {
  withSurroundings(program.command('disk')
    .description('Moves a guest with a disk in use, beside a plain copy of the used part; holds '
      + 'each move at Started and compares the blocks of both disks.')
    .option('--size <size>', 'size of the disk', size, parseBytes('2GiB'))
    .option('--used <size>', 'of it in use, 64 MiB of them written by the guest', size,
      parseBytes('500MB'))
    .option('--formats <list>', 'of raw,qcow2', listOf(oneOf(['raw', 'qcow2'])), ['raw', 'qcow2'])
    .option('--write-rates <list>', 'what the guest writes to it a second, e.g. 20MB/s,max',
      listOf(rate), [parseBytes('20MB')])
    .option('--memory <size>', 'memory of the guest', size, parseBytes('512MiB'))
    .option('--vcpus <n>', 'vCPUs of the guest', count, 1)
    .option('--runs <n>', 'runs of each kind', count, 1)
    .option('--rate <rate>', 'limit of the migration link', rate, parseBytes('125MB'))
    .option('--post-copy <consent>', 'never or when-needed: a guest whose disk writes fill the '
      + 'link may write its memory faster than what is left of it carries',
      oneOf(['never', 'when-needed']), 'when-needed'))
    .action(async (flags: DiskFlags) => await benchDisk(flags));
}
