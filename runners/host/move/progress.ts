/** Turns what engine and mirrors report into the one progress that users see. Pure. */
import type { SessionProgress } from '../../../contracts/migration.ts';
import type { SourceSnapshot } from '../../data-plane/sessions.ts';
import { etaOf, nextDiskPace, type DiskPace } from './eta.ts';
import type { MirrorProgress } from './ports.ts';

/** Disk and memory together: percent and ETA must not start over when memory follows the disk. */
export function sessionProgress(look: {
  readonly phase: SessionProgress['phase'];
  readonly paused: boolean;
  readonly memory: SourceSnapshot;
  readonly disks: MirrorProgress;
  readonly pace: DiskPace | null;
}): SessionProgress {
  const { memory, disks, phase } = look;
  return {
    version: 1,
    phase,
    paused: look.paused,
    round: memory.round,
    bytesPlanned: memory.bytesPlanned,
    bytesDone: memory.bytesDone,
    bytesOnWire: memory.bytesOnWire,
    diskBytesTotal: disks.bytesTotal,
    diskBytesDone: disks.bytesDone,
    dirtyBytesPerSecond: memory.dirtyBytesPerSecond,
    sendBytesPerSecond: memory.sendBytesPerSecond,
    etaMs: etaOf(look, look.pace),
    outlook: memory.outlook,
    estimatedDowntimeMs: memory.estimatedDowntimeMs,
    convergence: [disks.said, memory.convergence].filter((text) => text !== '').join('; '),
    mirrorMode: disks.mode,
  };
}

/** Looks at one move, with the pace of its disks kept from one to the next. */
export class ProgressLooks {
  #pace: DiskPace | null = null;

  next(
    { nowMs, ...look }: Omit<Parameters<typeof sessionProgress>[0], 'pace'> & {
      readonly nowMs: number;
    },
  ): SessionProgress {
    const { memory, disks, paused } = look;
    if (look.phase === 'disk') {
      const [carried, done] = [memory.diskBytes, disks.bytesDone];
      this.#pace = nextDiskPace(this.#pace, { nowMs, carried, done, paused });
    }
    return sessionProgress({ ...look, pace: this.#pace });
  }

  /** Another limit makes another pace. */
  forgetPace(): void {
    this.#pace = null;
  }
}
