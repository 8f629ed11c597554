/** A series of interleaved runs: engines take turns, and only the one whose turn it is runs. */
import type { GuestImage, QemuProgram } from '../guest-image.ts';
import type { Lab } from '../lab.ts';
import { labNetworks } from '../network/plan.ts';
import type { BenchEngine, EngineName, GuestOrder } from './engine.ts';
import type { LinkWatch } from './link-watch.ts';
import { brokenRun, measureRun, meetGuest } from './measure.ts';
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
  readonly multifdChannelCount: number;
}

/** What a series needs of its surroundings. */
export interface SeriesPlace {
  readonly lab: Lab;
  readonly image: GuestImage;
  readonly program: QemuProgram;
  /** Makes the `direct` engine; null where the product is not composed. */
  readonly makeDirect: ((guest: GuestOrder) => Promise<BenchEngine>) | null;
  readonly tell: (line: string) => void;
  /** Counters of the emulated link; null: there is none. */
  readonly link: LinkWatch | null;
  /** Aborted: the series ends with what it has. */
  readonly interrupted: AbortSignal;
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
  /** Why no further guest can be had: the one before could not be removed. */
  stuck: string | null;
}

async function makeContenders(
  series: SeriesOptions, place: SeriesPlace,
): Promise<Contender[]> {
  const contenders: Contender[] = [];
  for (const [index, name] of series.engines.entries()) {
    const guest = guestOrder(series, place.image, index);
    const address = guest.address.split('/')[0] ?? '';
    if (name !== 'direct') {
      const engine = new QemuEngine({
        ...place, name, guest, index, multifdChannelCount: series.multifdChannelCount });
      contenders.push({ engine, address, booted: false, stuck: null });
    } else if (place.makeDirect === null) {
      throw new TypeError('the direct engine is not composed here');
    } else {
      contenders.push({ engine: await place.makeDirect(guest), address, booted: false, stuck: null });
    }
  }
  return contenders;
}

interface Turn {
  readonly contender: Contender;
  readonly run: number;
}

async function oneRun(
  series: SeriesOptions, place: SeriesPlace, { contender, run }: Turn,
): Promise<RunRecord> {
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
    link: place.link,
  });
  if (record.guestVerified && !series.freshGuests) await engine.rest();
  else await discard(contender);
  return record;
}

/** A guest that can't be removed still has the address: no further one may get it. */
async function discard(contender: Contender): Promise<void> {
  contender.booted = false;
  try {
    await contender.engine.discard();
  } catch (error) {
    contender.stuck = `the guest before could not be removed: ${(error as Error).message}`;
  }
}

/** A run, or the record of why there is none: the series goes on either way. */
async function attempt(
  series: SeriesOptions, place: SeriesPlace, turn: Turn,
): Promise<RunRecord> {
  const { contender: { engine, stuck }, run } = turn;
  if (stuck !== null) return brokenRun(engine.name, run, new Error(stuck));
  try {
    return await oneRun(series, place, turn);
  } catch (error) {
    place.interrupted.throwIfAborted();
    await discard(turn.contender);
    return brokenRun(engine.name, run, error);
  }
}

/** "run 3 of 15 (qemu), 40 s so far, about 240 s left". Pure. */
export function progressText(progress: {
  readonly number: number; readonly total: number; readonly engine: string;
  readonly elapsedMs: number;
}): string {
  const { number, total, engine, elapsedMs } = progress;
  const done = number - 1;
  const left = done === 0 ? ''
    : `, about ${Math.round((elapsedMs / done) * (total - done) / 1000)} s left`;
  return `run ${number} of ${total} (${engine}), ${Math.round(elapsedMs / 1000)} s so far${left}`;
}

/** Makes the runs; each record is handed out as soon as it is there. */
export async function runSeries(
  series: SeriesOptions, place: SeriesPlace, onRecord: (record: RunRecord) => void,
): Promise<RunRecord[]> {
  const contenders = await makeContenders(series, place);
  const records: RunRecord[] = [];
  const order = turns(contenders, series.runs);
  const begunMs = performance.now();
  try {
    for (const { engine: contender, run } of order) {
      place.interrupted.throwIfAborted();
      place.tell(progressText({
        number: records.length + 1, total: order.length, engine: contender.engine.name,
        elapsedMs: performance.now() - begunMs,
      }));
      const record = await attempt(series, place, { contender, run });
      records.push(record);
      onRecord(record);
    }
  } finally {
    // An interrupt takes the whole lab down, guests and all.
    if (!place.interrupted.aborted) {
      for (const { engine } of contenders) await engine.discard().catch(() => undefined);
    }
  }
  return records;
}
