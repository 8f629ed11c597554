/**
 * A sitting of a campaign: one lab for many runs, raised anew when a run leaves it damaged. Decides
 * which run comes next; what a run is says run.ts, which guest it moves says test-room.ts.
 */
import { copyFileSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Lab } from '../lab.ts';
import { clockOf, guestKindOf } from './cells.ts';
import type { Cell } from './cells.ts';
import { Plant } from './plant.ts';
import type { RunRecord } from './run.ts';
import { isGood, TestRoom } from './test-room.ts';

export interface CampaignOptions {
  /** To be run, in this order. */
  readonly cells: readonly Cell[];
  /** What the move without a fault sends, of an earlier sitting; null: it is run first. */
  readonly baselineBytes: number | null;
  readonly tell: (what: string) => void;
  readonly onRecord: (record: RunRecord) => void;
  /** Logs of runs that went wrong are copied here, a folder each; null: nowhere. */
  readonly keepLogsAt: string | null;
  /** Told of each lab, so that an interrupt can take it down. */
  readonly onLab: (lab: Lab) => void;
  readonly interrupted: AbortSignal;
}

/** A run that the lab, not the product, has spoilt. Pure. */
function spoilt(cell: Cell | null, error: unknown, wholeMs: number): RunRecord {
  const why = error instanceof Error ? error.message : String(error);
  return {
    cell, outcome: 'lab-failed', violations: [], guestVerified: false, vcpuRunningMax: 0,
    effectiveMax: 0, runningCopiesMax: 0, lostWrites: 0, recoveredMs: null, endedMs: null,
    bytesSent: 0, bytesSentAgain: null, told: why.slice(0, 400),
    took: false, wholeMs, partsMs: {},
  };
}

/** Lines that the processes of a lab have logged. */
export function keepLogs(lab: Lab, folder: string): void {
  const logs = join(lab.directories.data, 'logs');
  if (!existsSync(logs)) return;
  mkdirSync(folder, { recursive: true });
  for (const name of readdirSync(logs)) copyFileSync(join(logs, name), join(folder, name));
}

/** Runs all cells; ends early when it is interrupted. */
export async function runCampaign(options: CampaignOptions): Promise<void> {
  const { cells, tell, onRecord, interrupted } = options;
  const needs = {
    smallDisks: cells.some(({ fault }) => fault === 'disk-full'),
    sharedVolumes: cells.some((cell) => guestKindOf(cell).disk === 'shared'),
    ownClocks: cells.some(({ fault }) => clockOf(fault) !== null),
  };
  let { baselineBytes } = options;
  const queue: (Cell | null)[] = [...(baselineBytes === null ? [null] : []), ...cells];
  let room: TestRoom | null = null;
  try {
    for (const [index, cell] of queue.entries()) {
      if (interrupted.aborted) return;
      const begunMs = performance.now();
      let record: RunRecord;
      try {
        if (room === null) tell('raising a lab');
        room ??= new TestRoom(await Plant.raise(options.onLab, needs), tell);
        record = await room.run(cell, baselineBytes);
      } catch (error) {
        record = spoilt(cell, error, Math.round(performance.now() - begunMs));
      }
      if (interrupted.aborted) return;
      if (cell === null && record.outcome === 'completed') baselineBytes = record.bytesSent;
      onRecord(record);
      if (isGood(record) || room === null) continue;
      if (options.keepLogsAt !== null) {
        keepLogs(room.plant.lab, join(options.keepLogsAt, `${room.plant.lab.id}-${index}`));
      }
      // What a bad run has left must not count for the next one.
      tell('taking the lab down');
      await room.close();
      room = null;
    }
  } finally {
    await room?.close();
  }
}
