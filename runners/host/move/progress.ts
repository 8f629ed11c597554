/** Turns what engine and mirrors report into the one progress that users see. Pure. */
import type { SessionProgress } from '../../../contracts/migration.ts';
import type { SourceSnapshot } from '../../data-plane/sessions.ts';
import { etaOf, type DiskPace } from './eta.ts';
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
