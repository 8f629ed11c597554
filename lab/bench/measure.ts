/**
 * One measured move of one engine: the outside client before, during and after it, what it cost,
 * and whether the guest that arrived is the guest that left. The same for every engine.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { OutsideClient } from '../client/outside-client.ts';
import type { ClientReport } from '../client/outside-client.ts';
import type { ReadBack } from '../client/redis-writer.ts';
import type { WitnessRequest, WitnessStatus } from '../client/witness-line.ts';
import type { Lab } from '../lab.ts';
import type { BenchEngine, EngineName, MoveReport, TotalPartsMs } from './engine.ts';
import type { LinkReading, LinkWatch } from './link-watch.ts';
import { MoveMeter } from './meter.ts';
import type { MoveCost } from './meter.ts';

/** Load before a move, so that its dirty rate and the resting gap are settled. */
const restingMs = 2_000;
/** Load after a move: the witness meets its pages again before the full sweep does. */
const afterMs = 1_000;
const guestAnswersMsMax = 90_000;

/** The load that runs in the guest while it is moved. */
export interface GuestLoad {
  /** Null: as fast as it can. */
  readonly dirtyBytesPerSecond: number | null;
  readonly workingSetBytes: number;
  readonly order: 'random' | 'sequential';
  readonly pages: 'full' | 'partial';
  /** Written to the guest's disk a second, past its page cache; absent: none. */
  readonly diskBytesPerSecond?: number;
}

/** One line of the benchmark's output. */
export interface RunRecord {
  readonly engine: EngineName;
  readonly run: number;
  /** `link-late`: the link emulator did not keep up, so the run does not count (see `reason`). */
  readonly outcome: 'completed' | 'failed' | 'timeout' | 'guest-damaged' | 'link-late';
  readonly totalMs: number | null;
  /** Sums to totalMs; what is in each says `TotalPartsMs`. */
  readonly totalPartsMs: TotalPartsMs | null;
  /** From the order to move until the engine is done with it: start of the target's VMM, checks
   * before and cleaning up after, which `totalMs` leaves out, included. */
  readonly wholeMs: number | null;
  readonly downtimeMs: number | null;
  /** Longest time between two echoes of the guest, around the move. */
  readonly outsideGapMsMax: number | null;
  /** When that one began, from the source's STOP; negative: the guest was silent before it. */
  readonly outsideGapBeganMs: number | null;
  /** Longest time between two acknowledged writes of the one Redis connection. */
  readonly redisGapMsMax: number | null;
  /** The client's own noise: 99th percentile of the same gap before the move. */
  readonly restingGapMsP99: number | null;
  readonly wireBytes: number | null;
  /** Of the engine's own processes in both hosts: VMMs with their vCPUs, runners, guards. */
  readonly cpuSeconds: number | null;
  /** The vCPUs' part of it. */
  readonly guestCpuSeconds: number | null;
  /** Of Temporal, ledger and control worker meanwhile; a peer does not use them. */
  readonly controlCpuSeconds: number | null;
  /** Of everything else in the hosts: what disturbed the run. */
  readonly othersCpuSeconds: number | null;
  readonly rounds: number | null;
  readonly guestVerified: boolean;
  readonly ackedWrites: number;
  readonly lostWrites: number;
  /** What went wrong; null for a good run. */
  readonly reason: string | null;
  readonly dirtyBytesPerSecond: number | null;
  readonly details: Readonly<Record<string, unknown>>;
}

/** What was seen of the guest before and after. */
export interface GuestEvidence {
  readonly before: WitnessStatus;
  readonly after: WitnessStatus;
  readonly readBack: ReadBack;
}

/** What a guest that did not survive the move shows; null when all is well. Pure. */
export function guestDamage({ before, after, readBack }: GuestEvidence): string | null {
  if (after.bootId !== before.bootId) return 'the guest was booted again';
  if (after.counter <= before.counter) return 'the counter of the guest went back or stands';
  if (after.selfCheckFailures > 0) return `${after.selfCheckFailures} self-check failures`;
  if (readBack.lostWrites > 0) return `${readBack.lostWrites} acknowledged writes lost`;
  if (readBack.connectionLost) return 'the TCP connection from outside broke';
  if (readBack.ackedWrites === 0) return 'no write was acknowledged';
  return null;
}

/** Where and under which load a run is made. */
export interface RunOrder {
  readonly lab: Lab;
  readonly engine: BenchEngine;
  readonly run: number;
  readonly address: string;
  readonly load: GuestLoad;
  readonly limitMs: number;
  /** Counters of the emulated link; null or absent: there is none. */
  readonly link?: LinkWatch | null;
}

/** The request that gives the witness its load. Pure. */
export const loadRequest = (load: GuestLoad): WitnessRequest => ({
  op: 'set',
  // The witness bounds it to "as fast as it can" itself.
  dirtyRateBytesPerSecond: load.dirtyBytesPerSecond ?? Number.MAX_SAFE_INTEGER,
  workingSetBytes: load.workingSetBytes,
  order: load.order,
  pages: load.pages,
  diskRateBytesPerSecond: load.diskBytesPerSecond ?? 0,
});

/**
 * Connects the outside client to a guest that runs or boots; `everyMs` is how often it writes and
 * asks for an echo, where many clients share the machine.
 */
export async function meetGuest(
  lab: Lab, address: string, everyMs: number | null = null,
): Promise<OutsideClient> {
  return await OutsideClient.whenGuestAnswers({
    labId: lab.id, namespace: lab.plan.clientNamespace, address,
    ...(everyMs === null ? {} : { writeEveryMs: everyMs, echoEveryMs: everyMs }),
  }, guestAnswersMsMax);
}

interface Seen {
  readonly resting: ClientReport;
  readonly move: MoveReport;
  readonly cost: MoveCost;
  readonly around: ClientReport | null;
  readonly damage: string | null;
  readonly writes: ReadBack | null;
  readonly dirtyBytesPerSecond: number;
  readonly diskBytesPerSecond: number | null;
  readonly wholeMs: number;
  readonly link: LinkReading | null;
}

/** What the guest wrote to its disk a second between two looks; null when it does not count. Pure. */
function diskRateOf(looks: {
  readonly begun: WitnessStatus; readonly before: WitnessStatus; readonly elapsedMs: number;
}): number | null {
  const [first, last] = [looks.begun['diskBytesWritten'], looks.before['diskBytesWritten']];
  if (typeof first !== 'number' || typeof last !== 'number') return null;
  return Math.round(((last - first) * 1000) / looks.elapsedMs);
}

async function watchMove(order: RunOrder, client: OutsideClient): Promise<Seen> {
  const { lab, engine, load, limitMs } = order;
  await client.witness(loadRequest(load));
  const begun = await client.witness({ op: 'start' });
  const begunMs = performance.now();
  await client.startWriting();
  await sleep(restingMs);
  const before = await client.witness({ op: 'status' });
  const diskBytesPerSecond = load.diskBytesPerSecond === undefined ? null
    : diskRateOf({ begun, before, elapsedMs: performance.now() - begunMs });
  const resting = await client.report();
  await client.mark();
  await order.link?.begin();
  const meter = await MoveMeter.begin({
    hosts: [lab.host(1), lab.host(2)], controlNamespace: lab.plan.controlNamespace,
    mark: engine.mark,
  });
  const orderedMs = performance.now();
  const move = await engine.move(limitMs);
  const wholeMs = performance.now() - orderedMs;
  const cost = await meter.end();
  const common = {
    resting, move, cost, wholeMs, link: await order.link?.end() ?? null,
    dirtyBytesPerSecond: before.dirtyRateAchievedBytesPerSecond, diskBytesPerSecond,
  };
  if (move.outcome !== 'completed') return { ...common, around: null, damage: null, writes: null };
  await sleep(afterMs);
  const around = await client.report();
  try {
    await client.stopWriting();
    await client.witness({ op: 'stop' });
    await client.witness({ op: 'set', diskRateBytesPerSecond: 0 });
    const after = await client.witness({ op: 'verify' });
    const writes = await client.readBack();
    return { ...common, around, writes, damage: guestDamage({ before, after, readBack: writes }) };
  } catch (error) {
    const damage = `the guest is silent after the move: ${(error as Error).message}`;
    return { ...common, around, writes: null, damage };
  }
}

/** Makes one run and says what came of it; a guest that is no longer good is discarded. */
export async function measureRun(order: RunOrder): Promise<RunRecord> {
  const client = await meetGuest(order.lab, order.address);
  try {
    return recordOf(order, await watchMove(order, client));
  } finally {
    await client.close();
  }
}

const rounded = (value: number, digits = 2): number => Number(value.toFixed(digits));

/** What a run counts as: a late link excuses a slow or failed move, never a damaged guest. Pure. */
export function judgeRun(seen: {
  readonly move: Pick<MoveReport, 'outcome'> & { readonly reason?: string };
  readonly damage: string | null;
  readonly distrust: string | null;
}): Pick<RunRecord, 'outcome' | 'guestVerified' | 'reason'> {
  const { move, damage, distrust } = seen;
  const completed = move.outcome === 'completed';
  if (damage !== null) return { outcome: 'guest-damaged', guestVerified: false, reason: damage };
  const failure = completed ? null : move.reason ?? null;
  if (distrust !== null) {
    const reason = failure === null ? distrust : `${distrust}; ${move.outcome}: ${failure}`;
    return { outcome: 'link-late', guestVerified: completed, reason };
  }
  return { outcome: move.outcome, guestVerified: completed, reason: failure };
}

const nothingSeen = {
  totalMs: null, totalPartsMs: null, wholeMs: null, downtimeMs: null, outsideGapMsMax: null,
  outsideGapBeganMs: null, redisGapMsMax: null, restingGapMsP99: null, wireBytes: null,
  cpuSeconds: null, guestCpuSeconds: null, controlCpuSeconds: null, othersCpuSeconds: null,
  rounds: null, ackedWrites: 0, lostWrites: 0, dirtyBytesPerSecond: null, details: {},
} as const;

/** A run that could not be made, or broke where nothing should: it counts as failed. Pure. */
export function brokenRun(engine: EngineName, run: number, error: unknown): RunRecord {
  const reason = error instanceof Error ? error.message : String(error);
  return { engine, run, outcome: 'failed', guestVerified: false, reason, ...nothingSeen };
}

const roundedAll = (parts: TotalPartsMs): TotalPartsMs => ({
  connectMs: rounded(parts.connectMs), diskMs: rounded(parts.diskMs),
  memoryMs: rounded(parts.memoryMs), downtimeMs: rounded(parts.downtimeMs),
  closingMs: rounded(parts.closingMs),
});

function recordOf(order: RunOrder, seen: Seen): RunRecord {
  const { move, cost, around, writes, link } = seen;
  const done = move.outcome === 'completed' ? move : null;
  const gapBeganAtMs = around?.echo.gapMaxBeganMs ?? null;
  const totalPartsMs = done?.totalPartsMs ?? null;
  return {
    engine: order.engine.name,
    run: order.run,
    ...judgeRun({ move, damage: seen.damage, distrust: link?.distrust ?? null }),
    totalMs: done === null ? null : rounded(done.totalMs),
    totalPartsMs: totalPartsMs === null ? null : roundedAll(totalPartsMs),
    wholeMs: done === null ? null : rounded(seen.wholeMs),
    downtimeMs: done === null ? null : rounded(done.downtimeMs),
    outsideGapMsMax: around === null ? null : rounded(around.echo.gapMsMax),
    outsideGapBeganMs: gapBeganAtMs === null || done === null ? null
      : rounded(gapBeganAtMs - done.beganAtMs),
    redisGapMsMax: around === null ? null : rounded(around.redis.gapMsMax),
    restingGapMsP99: rounded(seen.resting.echo.gapMsP99),
    wireBytes: cost.wireBytes,
    cpuSeconds: rounded(cost.hostSeconds + cost.guestSeconds),
    // Only VMMs that name their threads tell the guest's share.
    guestCpuSeconds: cost.guestSeconds === 0 ? null : rounded(cost.guestSeconds),
    controlCpuSeconds: rounded(cost.controlSeconds),
    othersCpuSeconds: rounded(cost.othersSeconds),
    rounds: done?.rounds ?? null,
    ackedWrites: writes?.ackedWrites ?? 0,
    lostWrites: writes?.lostWrites ?? 0,
    dirtyBytesPerSecond: Math.round(seen.dirtyBytesPerSecond),
    details: {
      ...done?.details,
      ...(seen.diskBytesPerSecond === null
        ? {} : { writtenBytesPerSecond: seen.diskBytesPerSecond }),
      ...(cost.runnerRssBytesMax > 0 ? { runnerRssBytesMax: cost.runnerRssBytesMax } : {}),
      ...(link === null ? {} : { link: link.use }),
    },
  };
}
