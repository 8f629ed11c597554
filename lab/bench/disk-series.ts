/**
 * Moves of a guest with a disk in use, each beside a plain copy of the used part over the link. Every
 * move is held at Started until the disks of both sides were compared block by block: the hold is in
 * its downtime and gaps, which are therefore no figures of these runs.
 */
import { createWriteStream, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { vmName } from '../../contracts/identity.ts';
import { diskPath, vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { runCommand } from '../command.ts';
import { hostStateDirectory } from '../compose.ts';
import type { GuestImage, QemuProgram } from '../guest-image.ts';
import type { Lab } from '../lab.ts';
import type { LabHost } from '../network/plan.ts';
import type { DirectPlant } from './engines/direct.ts';
import type { AtStarted, GuestOrder } from './engine.ts';
import { compareDisks } from './disk-comparison.ts';
import type { DiskComparison } from './disk-comparison.ts';
import { measureRun, meetGuest } from './measure.ts';
import type { RunRecord } from './measure.ts';
import { plainCopyMs } from './plain-copy.ts';

const mebibyte = 1_048_576;
const limitMs = 600_000;
/** The area on the disk that the witness rewrites and checks. */
const rewrittenBytes = 64 * mebibyte;

/** What is measured. */
export interface DiskSeriesOptions {
  readonly formats: readonly ('raw' | 'qcow2')[];
  readonly sizeBytes: number;
  readonly usedBytes: number;
  /** Rates at which the guest writes to its disk during the move; null: as fast as it can. */
  readonly writeBytesPerSecond: readonly (number | null)[];
  readonly runs: number;
  readonly memoryBytes: number;
  readonly vcpuCount: number;
}

/** A run of the disk benchmark. */
export interface DiskRecord extends RunRecord {
  readonly format: 'raw' | 'qcow2';
  readonly writeBytesPerSecond: number | null;
  /** What the guest really wrote a second, before the move began. */
  readonly writtenBytesPerSecond: number | null;
  readonly diskBytes: number;
  readonly usedBytes: number;
  readonly plainCopyMs: number;
  /** Time of the phase copy-disk, as seen from outside. */
  readonly diskMs: number | null;
  /** diskMs over the plain copy; null when the move did not complete. */
  readonly ratio: number | null;
  /** Null when the move did not come to Started. */
  readonly comparison: DiskComparison | null;
}

/** Data that does not compress, as a file. */
async function writeRandomFile(path: string, bytes: number): Promise<void> {
  const file = createWriteStream(path);
  for (let done = 0; done < bytes; done += mebibyte) {
    if (!file.write(randomBytes(Math.min(mebibyte, bytes - done)))) await once(file, 'drain');
  }
  file.end();
  await once(file, 'finish');
}

interface Images {
  /** As many bytes as the disk has in use, for the plain copy. */
  readonly used: string;
  readonly byFormat: ReadonlyMap<'raw' | 'qcow2', string>;
}

async function makeImages(place: DiskPlace, options: DiskSeriesOptions): Promise<Images> {
  const folder = join(place.lab.directories.data, 'guest');
  const filling = join(place.lab.directories.data, 'filling');
  mkdirSync(filling, { recursive: true });
  const used = join(place.lab.directories.data, 'used.bin');
  await writeRandomFile(used, options.usedBytes);
  // The area that the guest writes is in use as well.
  await writeRandomFile(
    join(filling, 'filling.bin'), Math.max(mebibyte, options.usedBytes - rewrittenBytes));
  const raw = join(folder, 'disk.raw');
  writeFileSync(raw, '');
  truncateSync(raw, options.sizeBytes);
  await runCommand(
    ['mke2fs', '-q', '-F', '-t', 'ext4', '-d', filling, raw], { timeoutMs: 300_000 });
  const byFormat = new Map<'raw' | 'qcow2', string>([['raw', raw]]);
  if (options.formats.includes('qcow2')) {
    const qcow2 = join(folder, 'disk.qcow2');
    await runCommand([
      ...(place.program.qemuImg ?? ['qemu-img']), 'convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2,
    ], { timeoutMs: 300_000, environment: place.program.environment });
    byFormat.set('qcow2', qcow2);
  }
  return { used, byFormat };
}

/** What the series needs of its surroundings. */
export interface DiskPlace {
  readonly lab: Lab;
  readonly image: GuestImage;
  readonly program: QemuProgram;
  readonly plant: DirectPlant;
  readonly tell: (line: string) => void;
}

function diskGuest(
  place: DiskPlace, options: DiskSeriesOptions, disk: NonNullable<GuestOrder['disk']>,
): GuestOrder {
  return {
    memoryBytes: options.memoryBytes, vcpuCount: options.vcpuCount,
    address: '198.18.1.100/24', macAddress: '52:4e:43:00:00:10',
    diskBytes: options.sizeBytes, disk,
    commandLine: `${place.image.kernelCommandLine} novacron.ip=198.18.1.100/24 `
      + `novacron.disk=${rewrittenBytes / mebibyte}M`,
  };
}

/** Compares the disks of the two hosts; done while the move is held at Started. */
const comparing = (place: DiskPlace, format: 'raw' | 'qcow2'): AtStarted =>
  async ({ source, target, vm }) => {
    const diskOn = (host: LabHost): string => diskPath(
      vmPaths(join(hostStateDirectory(place.lab, host), 'vms'), vmName(vm)), 'data');
    const comparison = await compareDisks({
      format, source: diskOn(source), target: diskOn(target), qemu: place.program,
      scratch: join(place.lab.directories.data, 'compared'),
    });
    return { comparison };
  };

/** A run that verified is still none when the disks were not compared, or were not equal. Pure. */
export function withComparison(seen: RunRecord): RunRecord & {
  readonly comparison: DiskComparison | null;
} {
  const { comparison: found, ...details } = seen.details;
  const comparison = (found ?? null) as DiskComparison | null;
  const record = { ...seen, details, comparison };
  if (!seen.guestVerified || comparison?.unequalBlocks === 0) return record;
  const reason = comparison === null ? 'the disks were not compared at Started'
    : `${comparison.unequalBlocks} of ${comparison.blocks} disk blocks differ at Started,`
      + ` the first is ${comparison.firstUnequal[0] ?? '?'}`;
  return { ...record, guestVerified: false, outcome: 'guest-damaged', reason };
}

/** Makes the runs; each record is handed out as soon as it is there. */
export async function runDiskSeries(
  options: DiskSeriesOptions, place: DiskPlace, onRecord: (record: DiskRecord) => void,
): Promise<DiskRecord[]> {
  const images = await makeImages(place, options);
  const records: DiskRecord[] = [];
  for (let run = 1; run <= options.runs; run += 1) {
    for (const format of options.formats) {
      for (const writeBytesPerSecond of options.writeBytesPerSecond) {
        const record = await oneRun(options, place, { images, run, format, writeBytesPerSecond });
        records.push(record);
        onRecord(record);
      }
    }
  }
  return records;
}

async function oneRun(
  options: DiskSeriesOptions, place: DiskPlace, what: {
    readonly images: Images; readonly run: number; readonly format: 'raw' | 'qcow2';
    readonly writeBytesPerSecond: number | null;
  },
): Promise<DiskRecord> {
  const { images, run, format, writeBytesPerSecond } = what;
  const sourceImage = images.byFormat.get(format) ?? null;
  const guest = diskGuest(place, options, { format, sourceImage });
  const engine = await place.plant.engine(guest, comparing(place, format));
  place.tell(`direct: booting a guest with a ${format} disk`);
  await engine.boot();
  await (await meetGuest(place.lab, '198.18.1.100')).close();
  const copyMs = await plainCopyMs(place.lab, images.used);
  const seen = await measureRun({
    lab: place.lab, engine, run, address: '198.18.1.100', limitMs,
    load: {
      dirtyBytesPerSecond: 5_000_000, workingSetBytes: 16 * mebibyte, order: 'random',
      pages: 'full', diskBytesPerSecond: writeBytesPerSecond ?? Number.MAX_SAFE_INTEGER,
    },
  });
  await engine.discard();
  const { diskMs: phaseMs, writtenBytesPerSecond } = seen.details;
  const diskMs = typeof phaseMs === 'number' ? phaseMs : null;
  return {
    ...withComparison(seen), format, writeBytesPerSecond, diskBytes: options.sizeBytes,
    writtenBytesPerSecond: typeof writtenBytesPerSecond === 'number' ? writtenBytesPerSecond : null,
    usedBytes: options.usedBytes, plainCopyMs: Math.round(copyMs),
    diskMs, ratio: diskMs === null ? null : Number((diskMs / copyMs).toFixed(3)),
  };
}
