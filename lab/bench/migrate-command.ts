/** `npm run bench -- migrate`: moves of one guest by each engine in turn. */
import { InvalidArgumentError } from 'commander';
import type { Command } from 'commander';
import { defaultExactness, exactnessModes } from '../../contracts/exactness.ts';
import type { ExactnessMode } from '../../contracts/exactness.ts';
import { parseBytes } from '../../contracts/units.ts';
import type { Lab } from '../lab.ts';
import { limitRate } from '../network/network.ts';
import { requireHonestRate } from '../network/wan-trust.ts';
import { startWan } from '../network/wan.ts';
import { engineNames, isEngineName } from './engine.ts';
import type { EngineName, GuestOrder } from './engine.ts';
import { defaultMultifdChannelCount, multifdChannelCounts } from './engines/qemu.ts';
import { LinkWatch } from './link-watch.ts';
import { runSeries } from './migrate-series.ts';
import type { SeriesOptions } from './migrate-series.ts';
import {
  count, finiteOrNull, listOf, milliseconds, oneOf, rate, share, size, withSurroundings,
} from './options.ts';
import { summariseRuns } from './summary.ts';
import { inLab, openOutput, raisePlant } from './surroundings.ts';
import { runHeader, tellRun, tellSummary } from './table.ts';

const figuresExplained = `
Figures, the same for every engine:
  totalMs          the transfer. QEMU: its MIGRATION setup event, which \`migrate\` causes, until both
                   ends said completed. direct: the session's start in the source's runner until the
                   hand-over is closed there; when pages followed later (post-copy), until the move
                   was settled. The target's VMM is up before, for both.
  totalPartsMs     its parts, which sum to it, cut at the same events:
    connectMs      QEMU: setup to active, plain TCP. direct: TCP, the TLS handshakes of peer link
                   and lanes, both clocks compared
    diskMs         direct: disks brought in sync; QEMU: 0
    memoryMs       until the source's STOP event
    downtimeMs     STOP to RESUME
    closingMs      RESUME until completed at both ends, a post-copy's late pages included
  wholeMs          from the order to move until the engine is done with it: with the start of the
                   target's VMM and, direct, the whole workflow (preflight, reserve, verify, settle,
                   release) and its record; QEMU: with the end of the source's VMM
  downtimeMs       from the source's STOP event to the target's RESUME event, by the VMMs' own
                   stamps on one clock, read from a QMP socket of the benchmark's own
  outsideGapMsMax  longest time between two ICMP echoes of the guest (asked every 2 ms from
                   another network namespace) around the move
  redisGapMsMax    longest time between two acknowledged writes on one TCP connection, with what
                   TCP's timers add
  restingGapMsP99  99th percentile of the echo gap before the move: the noise of the machine
  wireBytes        counted by the kernel on the migration interface, both ways, headers included
  cpuSeconds       of the engine's own processes in both hosts during wholeMs: VMMs with the guest's
                   work (guestCpuSeconds of it, where the VMM names its threads) and the start of
                   the target's, for direct also runners and guards
  controlCpuSeconds  meanwhile of Temporal, ledger and control worker: a cost of direct only, they
                   idle beside a peer
  othersCpuSeconds what else ran in the hosts meanwhile: for a peer the product's idle runners and
                   its idle guest
A run whose guest does not verify (boot id, counter, self-check of every page, acknowledged writes,
the TCP connection) counts as failed and is shown; so is a run that could not be made. Medians are
over verified runs only. With --rtt or --loss the link is emulated packet by packet, which is honest
to 500 Mbit/s: a run in which the emulator's own counters show that it was late (over 1 % of packets
more than 1 ms, or 0.5 ms on average) has outcome link-late, whatever the engine, and counts for
nothing. multifdChannels in details says how many channels a multifd peer had.`;

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
  readonly multifdChannels: number;
  readonly rate?: number;
  readonly rtt?: number;
  readonly loss?: number;
  readonly limit: number;
  readonly fresh: boolean;
  readonly postCopy: 'never' | 'when-needed';
  readonly downtimeBudget: number;
  readonly exactness: ExactnessMode;
  readonly qemu: string;
  readonly guest: string;
  readonly json: boolean;
  readonly out?: string;
}

const engineName = (text: string): EngineName => {
  if (isEngineName(text)) return text;
  throw new InvalidArgumentError(`engines are ${engineNames.join(', ')}`);
};

const seriesOf = (flags: MigrateFlags): SeriesOptions => ({
  engines: flags.engines, runs: flags.runs, memoryBytes: flags.memory, vcpuCount: flags.vcpus,
  dataBytes: flags.data, compressible: flags.compressible,
  load: {
    dirtyBytesPerSecond: finiteOrNull(flags.dirtyRate),
    workingSetBytes: flags.workingSet, order: flags.order, pages: flags.pages,
  },
  limitMs: flags.limit * 1000, freshGuests: flags.fresh,
  multifdChannelCount: flags.multifdChannels,
});

type LinkFlags = Pick<MigrateFlags, 'rate' | 'rtt' | 'loss'>;
const isEmulated = ({ rtt, loss }: LinkFlags): boolean => rtt !== undefined || loss !== undefined;

/** Makes the link as slow as asked for; answers how an emulated one is watched. */
export async function shapeLink(lab: Lab, flags: LinkFlags): Promise<LinkWatch | null> {
  const limit = finiteOrNull(flags.rate);
  if (isEmulated(flags)) {
    return new LinkWatch(await startWan(lab, {
      rateBytesPerSecond: limit, rttMs: flags.rtt ?? 0, lossShare: flags.loss ?? 0, seed: 1,
    }));
  }
  if (limit !== null) {
    for (const host of [lab.host(1), lab.host(2)]) await limitRate(host, limit);
  }
  return null;
}

async function benchMigrate(flags: MigrateFlags): Promise<void> {
  if (isEmulated(flags)) requireHonestRate(finiteOrNull(flags.rate));
  const output = openOutput(flags);
  await inLab(flags, async (surroundings) => {
    const plant = flags.engines.includes('direct') ? await raisePlant(surroundings, {
      postCopy: flags.postCopy, downtimeBudgetMs: flags.downtimeBudget,
      exactness: flags.exactness,
    }) : null;
    try {
      const link = await shapeLink(surroundings.lab, flags);
      if (!flags.json) surroundings.tell(runHeader);
      const makeDirect = plant === null ? null : (guest: GuestOrder) => plant.engine(guest);
      const place = { ...surroundings, makeDirect, link };
      const records = await runSeries(seriesOf(flags), place, (record) => {
        output.line(record, tellRun(record));
      });
      const summary = summariseRuns(records);
      output.line({ ...summary, settings: flags }, tellSummary(summary));
      const isBad = records.some(({ engine, guestVerified, outcome }) =>
        engine === 'direct' && !guestVerified && outcome !== 'link-late');
      if (isBad) process.exitCode = 1;
    } finally {
      await plant?.close();
    }
  });
}

/** Adds the command. */
export function addMigrateCommand(program: Command): void {
  withSurroundings(program.command('migrate')
    .description('Moves a guest to and fro between two hosts, engines taking turns.')
    .option('--memory <size>', 'memory of the guest', size, parseBytes('1GiB'))
    .option('--data <size>', 'resident data, written once', size, parseBytes('200MB'))
    .option('--compressible', 'make that data compressible', false)
    .option('--dirty-rate <rate>', 'bytes that the guest rewrites a second, or max', rate,
      parseBytes('200MB'))
    .option('--working-set <size>', 'memory that it rewrites', size, parseBytes('128MiB'))
    .option('--order <order>', 'random or sequential', oneOf(['random', 'sequential']), 'random')
    .option('--pages <share>', 'full or partial', oneOf(['full', 'partial']), 'full')
    .option('--vcpus <n>', 'vCPUs of the guest', count, 2)
    .option('--runs <n>', 'runs of each engine', count, 3)
    .option('--engines <list>', `of ${engineNames.join(',')}`, listOf(engineName), [...engineNames])
    .option('--multifd-channels <n>', `of the multifd peers: ${multifdChannelCounts.join(', ')}`,
      oneOf(multifdChannelCounts), defaultMultifdChannelCount)
    .option('--rate <rate>', 'limit of the migration link, e.g. 125MB/s', rate)
    .option('--rtt <ms>', 'its round trip (packet-level emulator, --rate ≤ 62.5MB/s)', milliseconds)
    .option('--loss <share>', 'packets lost on it, e.g. 0.1% (same emulator)', share)
    .option('--limit <seconds>', 'longest a move may take', count, 120)
    .option('--fresh', 'boot a new guest for every run', false)
    .option('--post-copy <consent>', 'direct: never or when-needed',
      oneOf(['never', 'when-needed']), 'when-needed')
    .option('--downtime-budget <ms>', 'direct: blackout to aim at', milliseconds, 100)
    .option('--exactness <when>', 'direct: before-resume, after-resume or off',
      oneOf(exactnessModes), defaultExactness))
    .addHelpText('after', figuresExplained)
    .action(async (flags: MigrateFlags) => await benchMigrate(flags));
}
