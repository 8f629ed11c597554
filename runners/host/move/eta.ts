/**
 * When a move will be over: what is left on disks and in memory over the rate on the wire, and what
 * follows the last byte. Memory's own forecast (rounds, write rate, post-copy) is the engine's;
 * here the disks before it and the steps after it are added. Pure: time is an argument.
 */
import type { SessionProgress } from '../../../contracts/migration.ts';
import type { SourceSnapshot } from '../../data-plane/sessions.ts';
import type { MirrorProgress } from './ports.ts';

/**
 * From the last round to the outcome: mirrors tightened, hand-over, verify, settle, release, ms;
 * the middle of what two busy cores took (docs/benchmarks.md).
 */
export const closingMs = 500;
/** The same once the VM runs at the target. */
export const settlingMs = 350;
/** What the disk rate looks back on, ms: an ETA that follows every sample jumps. */
const averageMs = 5_000;
/** Before that much has been seen a rate says little. */
const trustMs = 400;

/** Bytes of disks that were seen and the time that they took, older ones with less weight. */
export interface DiskPace {
  readonly atMs: number;
  /** The counters at that time: bytes on the wire, and bytes that the jobs call done. */
  readonly carried: number;
  readonly done: number;
  readonly seenCarried: number;
  readonly seenDone: number;
  readonly seenMs: number;
}

export interface EtaLook {
  readonly phase: SessionProgress['phase'];
  readonly paused: boolean;
  readonly memory: Pick<SourceSnapshot, 'etaMs' | 'bytesLeft' | 'diskBytes'>;
  readonly disks: MirrorProgress;
}

/** The pace after one more look; `before` is null at the first. */
export function nextDiskPace(
  before: DiskPace | null,
  { nowMs, carried, done, paused }: {
    readonly nowMs: number; readonly carried: number; readonly done: number;
    readonly paused: boolean;
  },
): DiskPace {
  const fresh = { atMs: nowMs, carried, done, seenCarried: 0, seenDone: 0, seenMs: 0 };
  if (before === null) return fresh;
  const passedMs = nowMs - before.atMs;
  if (passedMs <= 0) return before;
  // A pause says nothing about the link.
  if (paused) return { ...before, atMs: nowMs, carried, done };
  const fade = Math.exp(-passedMs / averageMs);
  return {
    ...fresh,
    seenCarried: before.seenCarried * fade + carried - before.carried,
    seenDone: before.seenDone * fade + done - before.done,
    seenMs: before.seenMs * fade + passedMs,
  };
}

/**
 * What the mirrors have still to carry: holes are in `bytesTotal` and cost nothing on the link, and
 * what the guest writes again makes the total grow.
 */
export function diskBytesLeft(
  { bytesTotal, bytesDone, bytesAtStart, bytesAllocated }: MirrorProgress, carried: number,
): number {
  const job = Math.max(0, bytesTotal - bytesDone);
  if (bytesAllocated === null) return job;
  const rewritten = Math.max(0, bytesTotal - bytesAtStart);
  return Math.min(job, Math.max(0, bytesAllocated + rewritten - carried));
}

/**
 * ms for disks and the first pass of memory; null without a rate. A capped job counts its holes
 * against the cap, so its own bytes at its own rate are the time; an uncapped one flies over them.
 */
function bothMs({ memory, disks }: EtaLook, pace: DiskPace | null): number | null {
  if (pace === null || pace.seenMs < trustMs || pace.seenDone <= 0) return null;
  const jobRate = pace.seenDone / pace.seenMs;
  const wireRate = pace.seenCarried / pace.seenMs;
  const cap = disks.bytesPerSecondMax / 1e3;
  const capped = cap > 0 && jobRate <= cap * 2;
  const job = Math.max(0, disks.bytesTotal - disks.bytesDone) / jobRate;
  if (capped) return job + memory.bytesLeft / (jobRate >= cap * 0.7 ? cap : jobRate);
  if (wireRate <= 0) return job + memory.bytesLeft / jobRate;
  return (diskBytesLeft(disks, memory.diskBytes) + memory.bytesLeft) / wireRate;
}

/**
 * ms until the outcome; null while there is no honest estimate. Before memory is tracked nobody
 * knows how fast the guest writes it: until then later rounds are not in it.
 */
export function etaOf(look: EtaLook, pace: DiskPace | null): number | null {
  const { phase, paused, memory } = look;
  switch (phase) {
    case 'connecting':
      return null;
    case 'disk': {
      const left = paused ? null : bothMs(look, pace);
      return left === null ? null : left + closingMs;
    }
    case 'memory':
      return memory.etaMs === null ? null : memory.etaMs + closingMs;
    case 'switchover':
      return closingMs;
    case 'post-copy':
      return memory.etaMs === null ? null : memory.etaMs + settlingMs;
    case 'ended':
      return settlingMs;
  }
}
