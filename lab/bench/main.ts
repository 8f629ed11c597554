/**
 * `npm run bench -- …`: measures the product beside QEMU's own migration, in the lab, on guests
 * whose memory is verified. Reads the command line, makes the lab, prints JSON lines or a table.
 */
import { join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { formatBytes, parseBytes } from '../../contracts/units.ts';
import { quantile } from '../client/gaps.ts';
import { imageDirectory } from '../compose.ts';
import { cacheDirectory, placeGuestImage, readQemuProgram } from '../guest-image.ts';
import type { GuestImage, QemuProgram } from '../guest-image.ts';
import { Lab } from '../lab.ts';
import { limitRate } from '../network/network.ts';
import { startWan } from '../network/wan.ts';
import { engineNames, isEngineName } from './engine.ts';
import { runDiskSeries } from './disk-series.ts';
import type { DiskRecord } from './disk-series.ts';
import type { EngineName, GuestOrder } from './engine.ts';
import { DirectPlant } from './engines/direct.ts';
import type { DirectPlantOptions } from './engines/direct.ts';
import type { RunRecord } from './measure.ts';
import { runSeries } from './migrate-series.ts';
import type { SeriesOptions } from './migrate-series.ts';
import { summariseRuns } from './summary.ts';
import type { BenchSummary } from './summary.ts';

const figuresExplained = `
Figures, the same for every engine:
  totalMs          from the start of the transfer (QEMU: its MIGRATION setup event; direct: the
                   session's start) until both ends have completed
  downtimeMs       from the source's STOP event to the target's RESUME event, by the VMMs' own
                   stamps on one clock, read from a QMP socket of the benchmark's own
  outsideGapMsMax  longest time between two ICMP echoes of the guest (asked every 2 ms from
                   another network namespace) around the move
  redisGapMsMax    longest time between two acknowledged writes on one TCP connection, with what
                   TCP's timers add
  restingGapMsP99  99th percentile of the echo gap before the move: the noise of the machine
  wireBytes        counted by the kernel on the migration interface, both ways, headers included
  cpuSeconds       of every process in both hosts during the move, the start of the target's VMM
                   and the guest's own work (guestCpuSeconds) included
A run whose guest does not verify (boot id, counter, self-check of every page, acknowledged writes,
the TCP connection) counts as failed and is shown. Medians are over verified runs only.`;

const size = (text: string): number => {
  try {
    return parseBytes(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
};
const count = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 1000) {
    throw new InvalidArgumentError('a whole number from 1 to 1000');
  }
  return value;
};
/** "125MB/s", "max"; infinity is without limit (commander turns null into ''). */
const rate = (text: string): number =>
  text === 'max' ? Infinity : size(text.replace(/\/s$/, ''));
const finiteOrNull = (value: number | undefined): number | null =>
  value === undefined || value === Infinity ? null : value;
const milliseconds = (text: string): number => {
  const value = Number(text.replace(/ms$/, ''));
  if (!Number.isFinite(value) || value < 0) throw new InvalidArgumentError('ms, like 20ms');
  return value;
};
const share = (text: string): number => {
  const value = text.endsWith('%') ? Number(text.slice(0, -1)) / 100 : Number(text);
  if (!(value >= 0 && value < 1)) throw new InvalidArgumentError('a share like 0.1% or 0.001');
  return value;
};
const engineList = (text: string): EngineName[] => text.split(',').map((name) => {
  if (!isEngineName(name)) {
    throw new InvalidArgumentError(`engines are ${engineNames.join(', ')}`);
  }
  return name;
});

const formatList = (text: string): ('raw' | 'qcow2')[] => text.split(',').map((name) => {
  if (name === 'raw' || name === 'qcow2') return name;
  throw new InvalidArgumentError('formats are raw, qcow2');
});

interface MigrateFlags {
  readonly memory: number;
  readonly data: number;
  readonly compressible: boolean;
  readonly dirtyRate: number;
  readonly workingSet: number;
  readonly order: 'random' | 'sequential';
  readonly pages: 'full' | 'partial';
  readonly vcpus: number;
  readonly runs: number;
  readonly engines: EngineName[];
  readonly rate?: number;
  readonly rtt?: number;
  readonly loss?: number;
  readonly limit: number;
  readonly fresh: boolean;
  readonly postCopy: 'never' | 'when-needed';
  readonly downtimeBudget: number;
  readonly qemu: string;
  readonly guest: string;
  readonly json: boolean;
}

const seriesOf = (flags: MigrateFlags): SeriesOptions => ({
  engines: flags.engines, runs: flags.runs, memoryBytes: flags.memory, vcpuCount: flags.vcpus,
  dataBytes: flags.data, compressible: flags.compressible,
  load: {
    dirtyBytesPerSecond: finiteOrNull(flags.dirtyRate),
    workingSetBytes: flags.workingSet, order: flags.order, pages: flags.pages,
  },
  limitMs: flags.limit * 1000, freshGuests: flags.fresh,
});

async function shapeLink(
  lab: Lab, flags: Pick<MigrateFlags, 'rate' | 'rtt' | 'loss'>,
): Promise<void> {
  const limit = finiteOrNull(flags.rate);
  if (flags.rtt !== undefined || flags.loss !== undefined) {
    await startWan(lab, {
      rateBytesPerSecond: limit, rttMs: flags.rtt ?? 0, lossShare: flags.loss ?? 0, seed: 1,
    });
  } else if (limit !== null) {
    for (const host of [lab.host(1), lab.host(2)]) await limitRate(host, limit);
  }
}

const shown = (value: number | null, digits = 0): string =>
  (value === null ? '-' : value.toFixed(digits)).padStart(9);

function tellRun(record: RunRecord): string {
  return [
    record.engine.padEnd(18), String(record.run).padStart(3), record.outcome.padEnd(13),
    shown(record.totalMs), shown(record.downtimeMs, 1), shown(record.outsideGapMsMax, 1),
    shown(record.redisGapMsMax, 1),
    (record.wireBytes === null ? '-' : formatBytes(record.wireBytes)).padStart(9),
    shown(record.cpuSeconds, 2), shown(record.rounds),
    record.reason === null ? '' : `  ${record.reason}`,
  ].join(' ');
}
const runHeader = `${'engine'.padEnd(18)} run outcome         total ms   down ms    gap ms  `
  + 'redis ms      wire     cpu s    rounds';

function tellSummary(summary: BenchSummary): string {
  const lines = summary.engines.map((engine) => {
    const median = (name: keyof typeof engine.figures): string => {
      const figure = engine.figures[name];
      return figure === undefined ? '-'
        : `${figure.median.toFixed(1)} (${figure.min.toFixed(1)}-${figure.max.toFixed(1)})`;
    };
    return `${engine.engine.padEnd(18)} ${engine.completed}/${engine.runs} good, `
      + `${engine.damaged} damaged; total ${median('totalMs')} ms; `
      + `downtime ${median('downtimeMs')} ms; gap ${median('outsideGapMsMax')} ms`;
  });
  return `medians (spread) of verified runs\n${lines.join('\n')}`;
}

interface Surroundings {
  readonly lab: Lab;
  readonly image: GuestImage;
  readonly program: QemuProgram;
  readonly tell: (line: string) => void;
}

/** A lab for the time of one benchmark; it goes with it, whatever happens. */
async function inLab(
  flags: { readonly guest: string; readonly qemu: string },
  work: (surroundings: Surroundings) => Promise<void>,
): Promise<void> {
  const lab = await Lab.raise({ hostCount: 2 });
  const leave = (): void => {
    void lab.lower().finally(() => process.exit(130));
  };
  process.once('SIGINT', leave).once('SIGTERM', leave);
  try {
    await work({
      lab, image: placeGuestImage(imageDirectory(lab), flags.guest),
      program: readQemuProgram(flags.qemu),
      tell: (line) => void process.stderr.write(`${line}\n`),
    });
  } finally {
    await lab.lower();
  }
}

const raisePlant = async (
  surroundings: Surroundings, policy: DirectPlantOptions['policy'],
): Promise<DirectPlant> => {
  surroundings.tell('composing the product: Temporal, ledger, control worker, two host runners');
  return await DirectPlant.raise({ ...surroundings, policy });
};

async function benchMigrate(flags: MigrateFlags): Promise<void> {
  await inLab(flags, async (surroundings) => {
    const plant = flags.engines.includes('direct') ? await raisePlant(surroundings, {
      postCopy: flags.postCopy, downtimeBudgetMs: flags.downtimeBudget,
    }) : null;
    try {
      await shapeLink(surroundings.lab, flags);
      if (!flags.json) surroundings.tell(runHeader);
      const makeDirect = plant === null ? null : (guest: GuestOrder) => plant.engine(guest);
      const place = { ...surroundings, makeDirect };
      const records = await runSeries(seriesOf(flags), place, (record) => {
        process.stdout.write(flags.json ? `${JSON.stringify(record)}\n` : `${tellRun(record)}\n`);
      });
      const summary = summariseRuns(records);
      process.stdout.write(flags.json
        ? `${JSON.stringify({ ...summary, settings: flags })}\n` : `${tellSummary(summary)}\n`);
      if (records.some(({ engine, guestVerified }) => engine === 'direct' && !guestVerified)) {
        process.exitCode = 1;
      }
    } finally {
      await plant?.close();
    }
  });
}

interface DiskFlags {
  readonly size: number;
  readonly used: number;
  readonly formats: ('raw' | 'qcow2')[];
  readonly writeRates: number[];
  readonly memory: number;
  readonly vcpus: number;
  readonly runs: number;
  readonly rate?: number;
  readonly guest: string;
  readonly qemu: string;
  readonly json: boolean;
}

const tellDiskRun = (record: DiskRecord): string =>
  `${record.format.padEnd(5)} written at ${formatBytes(record.writtenBytesPerSecond ?? 0)}/s  `
  + `${tellRun(record)}  disk ${record.diskMs ?? '-'} ms, plain copy ${record.plainCopyMs} ms, `
  + `ratio ${record.ratio ?? '-'}, ${record.comparison === null ? 'not compared'
    : `${record.comparison.unequalBlocks} of ${record.comparison.blocks} blocks differ`}`;

async function benchDisk(flags: DiskFlags): Promise<void> {
  await inLab(flags, async (surroundings) => {
    const plant = await raisePlant(surroundings, { postCopy: 'never', downtimeBudgetMs: 100 });
    try {
      await shapeLink(surroundings.lab, flags);
      const records = await runDiskSeries({
        formats: flags.formats, sizeBytes: flags.size, usedBytes: flags.used,
        writeBytesPerSecond: flags.writeRates.map(finiteOrNull), runs: flags.runs, memoryBytes: flags.memory,
        vcpuCount: flags.vcpus,
      }, { ...surroundings, plant }, (record) => {
        process.stdout.write(
          flags.json ? `${JSON.stringify(record)}\n` : `${tellDiskRun(record)}\n`);
      });
      const ratios = records.flatMap(({ ratio }) => (ratio === null ? [] : [ratio]));
      const summary = {
        msg: 'summary', runs: records.length,
        verified: records.filter((record) => record.guestVerified).length,
        ratioMedian: quantile(ratios, 0.5), ratioMax: Math.max(0, ...ratios), settings: flags,
      };
      process.stdout.write(`${JSON.stringify(summary)}\n`);
      if (summary.verified < summary.runs) process.exitCode = 1;
    } finally {
      await plant.close();
    }
  });
}

const program = new Command('bench')
  .description('Measures moves in a lab of network namespaces on this machine (needs root).');
program.command('migrate')
  .description('Moves a guest to and fro between two hosts, engines taking turns.')
  .option('--memory <size>', 'memory of the guest', size, parseBytes('1GiB'))
  .option('--data <size>', 'resident data, written once', size, parseBytes('200MB'))
  .option('--compressible', 'make that data compressible', false)
  .option('--dirty-rate <rate>', 'bytes that the guest rewrites a second, or max', rate,
    parseBytes('200MB'))
  .option('--working-set <size>', 'memory that it rewrites', size, parseBytes('128MiB'))
  .option('--order <order>', 'random or sequential', 'random')
  .option('--pages <share>', 'full or partial', 'full')
  .option('--vcpus <n>', 'vCPUs of the guest', count, 2)
  .option('--runs <n>', 'runs of each engine', count, 3)
  .option('--engines <list>', `of ${engineNames.join(',')}`, engineList, [...engineNames])
  .option('--rate <rate>', 'limit of the migration link, e.g. 125MB/s', rate)
  .option('--rtt <ms>', 'round trip of the migration link (packet-level emulator)', milliseconds)
  .option('--loss <share>', 'packets lost on it, e.g. 0.1%', share)
  .option('--limit <seconds>', 'longest a move may take', count, 120)
  .option('--fresh', 'boot a new guest for every run', false)
  .option('--post-copy <consent>', 'direct: never or when-needed', 'when-needed')
  .option('--downtime-budget <ms>', 'direct: blackout to aim at', milliseconds, 100)
  .option('--qemu <file>', 'description of the QEMU to use',
    join(cacheDirectory, 'qemu-10/qemu.json'))
  .option('--guest <file>', 'description of the guest image',
    join(cacheDirectory, 'guest/guest.json'))
  .option('--json', 'one JSON line a run, the last line sums up', false)
  .addHelpText('after', figuresExplained)
  .action(async (flags: MigrateFlags) => await benchMigrate(flags));
program.command('disk')
  .description('Moves a guest with a disk in use, beside a plain copy of the used part; holds each move '
    + 'at Started and compares the blocks of both disks.')
  .option('--size <size>', 'size of the disk', size, parseBytes('2GiB'))
  .option('--used <size>', 'data on it that does not compress', size, parseBytes('500MB'))
  .option('--formats <list>', 'of raw,qcow2', formatList, ['raw', 'qcow2'])
  .option('--write-rates <list>', 'what the guest writes to it a second, e.g. 20MB/s,max',
    (text: string) => text.split(',').map(rate), [parseBytes('20MB')])
  .option('--memory <size>', 'memory of the guest', size, parseBytes('512MiB'))
  .option('--vcpus <n>', 'vCPUs of the guest', count, 1)
  .option('--runs <n>', 'runs of each kind', count, 1)
  .option('--rate <rate>', 'limit of the migration link', rate, parseBytes('125MB'))
  .option('--qemu <file>', 'description of the QEMU to use',
    join(cacheDirectory, 'qemu-10/qemu.json'))
  .option('--guest <file>', 'description of the guest image',
    join(cacheDirectory, 'guest/guest.json'))
  .option('--json', 'one JSON line a run, the last line sums up', false)
  .action(async (flags: DiskFlags) => await benchDisk(flags));

try {
  await program.parseAsync();
} catch (error) {
  const report = error instanceof CodedError
    ? { code: error.code, message: error.message } : { code: 'internal', message: String(error) };
  process.stderr.write(`bench: ${report.message}\n`);
  process.stdout.write(`${JSON.stringify({ msg: 'failed', ...report })}\n`);
  process.exitCode = 1;
}
