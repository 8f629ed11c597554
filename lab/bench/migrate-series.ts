/** A series of interleaved runs: engines take turns, and only the one whose turn it is runs. */
import type { GuestImage, QemuProgram } from '../guest-image.ts';
import type { Lab } from '../lab.ts';
import { labNetworks } from '../network/plan.ts';
import type { BenchEngine, EngineName, GuestOrder } from './engine.ts';
import { measureRun, meetGuest } from './measure.ts';
import type { GuestLoad, RunRecord } from './measure.ts';
import { QemuEngine } from './engines/qemu.ts';

/** What a series measures. */
export interface SeriesOptions {
  readonly engines: readonly EngineName[];
  readonly runs: number;
  readonly memoryBytes: number;
  readonly vcpuCount: number;
  /** Resident data, written once. */
  readonly dataBytes: number;
  readonly compressible: boolean;
  readonly load: GuestLoad;
  readonly limitMs: number;
  /** A new guest for every run instead of one that goes to and fro. */
  readonly freshGuests: boolean;
}

/** What a series needs of its surroundings. */
export interface SeriesPlace {
  readonly lab: Lab;
  readonly image: GuestImage;
  readonly program: QemuProgram;
  /** Makes the `direct` engine; null where the product is not composed. */
  readonly makeDirect: ((guest: GuestOrder) => Promise<BenchEngine>) | null;
  readonly tell: (line: string) => void;
}

/** The guest of engine number `index`. Pure. */
export function guestOrder(
  series: SeriesOptions, image: GuestImage, index: number,
): GuestOrder {
  const address = `${labNetworks.vmSegment}.${100 + index}/${labNetworks.prefixLength}`;
  const mebibytes = (bytes: number): string => `${Math.ceil(bytes / 1_048_576)}M`;
  return {
    memoryBytes: series.memoryBytes, vcpuCount: series.vcpuCount, address, diskBytes: 0,
    macAddress: `52:4e:43:00:00:${(0x10 + index).toString(16)}`,
    commandLine: [
      image.kernelCommandLine, `novacron.ip=${address}`,
      `novacron.pattern=${mebibytes(series.load.workingSetBytes)}`,
      `novacron.data=${mebibytes(series.dataBytes)}`,
      `novacron.compressible=${series.compressible ? 1 : 0}`,
    ].join(' '),
  };
}

/** Rounds in which every engine has its turn once, the order turning by one each round. Pure. */
export function turns<T>(engines: readonly T[], roundCount: number): { engine: T; run: number }[] {
  return Array.from({ length: roundCount }, (_, round) => engines.map((_, place) => ({
    engine: engines[(place + round) % engines.length] as T, run: round + 1,
  }))).flat();
}

interface Contender {
  readonly engine: BenchEngine;
  readonly address: string;
  booted: boolean;
}

async function makeContenders(
  series: SeriesOptions, place: SeriesPlace,
): Promise<Contender[]> {
  const contenders: Contender[] = [];
  for (const [index, name] of series.engines.entries()) {
    const guest = guestOrder(series, place.image, index);
    const address = guest.address.split('/')[0] ?? '';
    if (name !== 'direct') {
      const engine = new QemuEngine({ ...place, name, guest, index });
      contenders.push({ engine, address, booted: false });
    } else if (place.makeDirect === null) {
      throw new TypeError('the direct engine is not composed here');
    } else {
      contenders.push({ engine: await place.makeDirect(guest), address, booted: false });
    }
  }
  return contenders;
}

async function oneRun(
  series: SeriesOptions, place: SeriesPlace, turn: { contender: Contender; run: number },
): Promise<RunRecord> {
  const { contender, run } = turn;
  const { engine, address } = contender;
  if (contender.booted) {
    await engine.wake();
  } else {
    place.tell(`${engine.name}: booting a guest`);
    await engine.boot();
    await (await meetGuest(place.lab, address)).close();
    contender.booted = true;
  }
  const record = await measureRun({
    lab: place.lab, engine, run, address, load: series.load, limitMs: series.limitMs,
  });
  if (record.guestVerified && !series.freshGuests) {
    await engine.rest();
  } else {
    await engine.discard();
    contender.booted = false;
  }
  return record;
}

/** Makes the runs; each record is handed out as soon as it is there. */
export async function runSeries(
  series: SeriesOptions, place: SeriesPlace, onRecord: (record: RunRecord) => void,
): Promise<RunRecord[]> {
  const contenders = await makeContenders(series, place);
  const records: RunRecord[] = [];
  try {
    for (const { engine: contender, run } of turns(contenders, series.runs)) {
      const record = await oneRun(series, place, { contender, run });
      records.push(record);
      onRecord(record);
    }
  } finally {
    for (const { engine } of contenders) await engine.discard();
  }
  return records;
}
