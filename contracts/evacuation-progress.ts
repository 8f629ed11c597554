/** How far an evacuation is, and how long it will take: pure, used by clients. */
import type { EvacuationRow, EvacuationStatus } from './evacuation.ts';
import type { MigrationId } from './identity.ts';
import type { MigrationStatus } from './migration.ts';

/** A running move as it is now. */
export type RunningMoves = ReadonlyMap<MigrationId, MigrationStatus>;
export interface EvacuationProgress {
  /** Of memory and disks of all VMs; 100 once none is left to be moved. */
  readonly percent: number;
  /** Until the last move has ended; null while there is no honest estimate. */
  readonly etaMs: number | null;
  readonly counts: Readonly<Record<EvacuationRow['state'], number>>;
}

const sizeOf = ({ memoryBytes, diskBytes }: EvacuationRow): number => memoryBytes + diskBytes;
const moveOf = (row: EvacuationRow, moves: RunningMoves): MigrationStatus | null =>
  row.state === 'moving' && row.migration !== null ? moves.get(row.migration) ?? null : null;

/** Part of a VM's way that lies behind it, 0 to 1. What is skipped is not waited for any more. */
function partDone(row: EvacuationRow, moves: RunningMoves): number {
  if (row.state === 'waiting' || row.state === 'busy') return 0;
  return row.state === 'moving' ? (moveOf(row, moves)?.percent ?? 0) / 100 : 1;
}

/** ms a byte took in the moves that have ended, by the moves under way where none has; or null. */
function pace(rows: readonly EvacuationRow[], moves: RunningMoves, nowMs: number): number | null {
  const seen = rows.flatMap((row) => {
    if (row.startedAtMs === null) return [];
    if (row.state === 'moved' && row.endedAtMs !== null) {
      return [{ ended: true, ms: row.endedAtMs - row.startedAtMs, bytes: sizeOf(row) }];
    }
    const etaMs = moveOf(row, moves)?.progress?.etaMs ?? null;
    return etaMs === null ? []
      : [{ ended: false, ms: nowMs - row.startedAtMs + etaMs, bytes: sizeOf(row) }];
  });
  const ended = seen.filter((one) => one.ended);
  const used = ended.length > 0 ? ended : seen;
  const bytes = used.reduce((sum, one) => sum + one.bytes, 0);
  return bytes === 0 ? null : used.reduce((sum, one) => sum + one.ms, 0) / bytes;
}

/** Waiting VMs go to whichever of the lanes of moves is free first, as the evacuation does it. */
function etaOf(status: EvacuationStatus, moves: RunningMoves, nowMs: number): number | null {
  const { rows, policy, paused, opensAtMs } = status;
  const open = rows.filter(({ state }) =>
    state === 'waiting' || state === 'moving' || state === 'busy');
  if (open.length === 0) return 0;
  const msPerByte = pace(rows, moves, nowMs);
  if (paused || opensAtMs !== null || msPerByte === null) return null;
  const free = Array.from({ length: policy.concurrency }, () => 0);
  const isMoving = ({ state }: EvacuationRow): boolean => state === 'moving';
  for (const row of [...open.filter(isMoving), ...open.filter((one) => !isMoving(one))]) {
    const whole = sizeOf(row) * msPerByte;
    const own = moveOf(row, moves)?.progress?.etaMs
      ?? (isMoving(row) ? Math.max(0, whole - (nowMs - (row.startedAtMs ?? nowMs))) : whole);
    const next = free.indexOf(Math.min(...free));
    free[next] = (free[next] ?? 0) + own;
  }
  return Math.round(Math.max(...free));
}

/** The whole, from the evacuation's status and the status of each of its running moves. */
export function evacuationProgress(
  status: EvacuationStatus, moves: RunningMoves, nowMs: number,
): EvacuationProgress {
  const { rows } = status;
  const counts = { waiting: 0, moving: 0, busy: 0, moved: 0, left: 0, skipped: 0 };
  for (const { state } of rows) counts[state] += 1;
  const total = rows.reduce((sum, row) => sum + sizeOf(row), 0);
  const done = rows.reduce((sum, row) => sum + sizeOf(row) * partDone(row, moves), 0);
  const isOver = status.outcome !== null;
  const percent = isOver || (total === 0 && status.phase === 'done') ? 100
    : total === 0 ? 0 : Math.min(99.9, Math.round((done / total) * 1_000) / 10);
  return { percent, etaMs: isOver ? 0 : etaOf(status, moves, nowMs), counts };
}
