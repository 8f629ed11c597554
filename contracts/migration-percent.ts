/**
 * How far a move is, as a number that people can read: pure, from phase and session progress. Used
 * by the workflow and by clients, which see newer figures in the heartbeats.
 */
import type { CheckProgress } from './exactness.ts';
import type { MigrationPhase, MoveSize, SessionProgress } from './migration.ts';

/** The part of the scale at which each phase begins, percent; copying has nearly all of it. */
const phaseStart: Readonly<Record<MigrationPhase, number>> = {
  'preflight': 0,
  'reserve': 1,
  'prepare-target': 2,
  'copy-disk': 4,
  'copy-memory': 4,
  'switchover': 94,
  'post-copy': 94,
  'verify': 96,
  'settle': 98,
  'release': 99,
  'compensating': 0,
  'done': 100,
};

const share = (part: number, whole: number): number =>
  whole > 0 ? Math.min(1, Math.max(0, part / whole)) : 0;

/**
 * 0 to 100. Pages dirtied again make `bytesPlanned` grow, so the fresh value may be lower than an
 * earlier one: callers keep the larger (`neverFalling`).
 */
export function percentOf(
  phase: MigrationPhase,
  progress: SessionProgress | null,
  size: MoveSize | null,
): number {
  if (phase !== 'copy-disk' && phase !== 'copy-memory') return phaseStart[phase];
  const total = (size?.memoryBytes ?? 0) + (size?.diskBytes ?? 0);
  const diskScale = total > 0 ? (size?.diskBytes ?? 0) / total : 0;
  const diskDone = phase === 'copy-memory' ? 1
    : share(progress?.diskBytesDone ?? 0, progress?.diskBytesTotal ?? 0);
  const memoryDone = phase === 'copy-memory'
    ? share(progress?.bytesDone ?? 0, progress?.bytesPlanned ?? 0) : 0;
  const copied = diskScale * diskDone + (1 - diskScale) * memoryDone;
  return phaseStart['copy-disk'] + copied * (phaseStart.switchover - phaseStart['copy-disk']);
}

/** The same while the images are compared, which is nearly all of verifying. */
export const checkPercent = ({ pagesDone, pagesTotal }: CheckProgress): number =>
  phaseStart.verify + share(pagesDone, pagesTotal) * (phaseStart.settle - phaseStart.verify);

/** The larger of what was shown and what is known now, within the scale, one decimal. */
export const neverFalling = (shown: number, fresh: number): number =>
  Math.min(100, Math.max(shown, Math.round(fresh * 10) / 10));

/** The phase as the session sees it, where it knows better than the workflow. */
export function refinedPhase(
  phase: MigrationPhase,
  progress: SessionProgress | null,
): MigrationPhase {
  if (phase !== 'copy-memory' || progress === null) return phase;
  return progress.phase === 'switchover' || progress.phase === 'post-copy' ? progress.phase : phase;
}
