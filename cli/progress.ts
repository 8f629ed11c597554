/**
 * What a person sees of a running move: pure. Figures that would run backwards are held; the rest
 * is shown as it is reported. How often it is asked is decided by `watch.ts`.
 */
import type { CheckProgress } from '../contracts/exactness.ts';
import type { MigrationPhase, MigrationStatus, MoveOutlook, MoveSize, SessionProgress,
} from '../contracts/migration.ts';
import { formatBytes } from '../contracts/units.ts';

/** One picture of a move. */
export interface ProgressView {
  readonly phase: MigrationPhase;
  readonly percent: number;
  readonly bytesOnWire: number;
  readonly bytesDone: number;
  readonly bytesPlanned: number;
  readonly round: number;
  readonly sendBytesPerSecond: number;
  readonly dirtyBytesPerSecond: number;
  readonly etaMs: number | null;
  readonly estimatedDowntimeMs: number | null;
  readonly paused: boolean;
  readonly convergence: string;
  readonly outlook: MoveOutlook;
  readonly mirrorMode: SessionProgress['mirrorMode'];
  readonly waitsFor: string | null;
  readonly check: CheckProgress | null;
}

const phaseOrder: readonly MigrationPhase[] = ['preflight', 'reserve', 'prepare-target',
  'copy-disk',
  'copy-memory', 'switchover', 'post-copy', 'verify', 'settle', 'release', 'compensating', 'done'];

/** Scale of the copying phases in percent; the steps around them take the rest. */
const copyStartPercent = 4;
const copyEndPercent = 94;

const share = (part: number, whole: number): number =>
  whole > 0 ? Math.min(1, Math.max(0, part / whole)) : 0;

/**
 * Percent of the copying phases from the newest figures, on the scale of the workflow's own (which
 * looks at the session only now and then): disks and memory each have their part of the bytes.
 */
export function copyPercent(
  { phase, progress, size }: {
    readonly phase: MigrationPhase; readonly progress: SessionProgress;
    readonly size: MoveSize | null;
  },
): number {
  const diskBytes = size?.diskBytes ?? progress.diskBytesTotal;
  const total = diskBytes + (size?.memoryBytes ?? progress.bytesPlanned);
  const diskScale = total > 0 ? diskBytes / total : 0;
  const isDisk = phase === 'copy-disk';
  const diskDone = isDisk ? share(progress.diskBytesDone, progress.diskBytesTotal) : 1;
  const memoryDone = isDisk ? 0 : share(progress.bytesDone, progress.bytesPlanned);
  const copied = diskScale * diskDone + (1 - diskScale) * memoryDone;
  return copyStartPercent + copied * (copyEndPercent - copyStartPercent);
}

/** The later one of what the workflow last saw and the heartbeat on its way to it. */
export function laterProgress(
  first: SessionProgress | null, second: SessionProgress | null,
): SessionProgress | null {
  if (first === null || second === null) return first ?? second;
  const age = (one: SessionProgress): number => one.bytesOnWire + one.diskBytesDone;
  return age(second) >= age(first) ? second : first;
}

const refine = (phase: MigrationPhase, progress: SessionProgress | null): MigrationPhase =>
  phase === 'copy-memory' && (progress?.phase === 'switchover' || progress?.phase === 'post-copy')
    ? progress.phase : phase;

/**
 * Next picture after `shown`. Percent, bytes, rounds and the phase never fall; a move that turns
 * back shows its phase `compensating` and keeps the percent it had.
 */
export function nextView(
  shown: ProgressView | null,
  { status, heartbeat, check = null }: {
    readonly status: MigrationStatus; readonly heartbeat: SessionProgress | null;
    readonly check?: CheckProgress | null;
  },
): ProgressView {
  const progress = laterProgress(status.progress, heartbeat);
  const copying = status.phase === 'copy-disk' || status.phase === 'copy-memory';
  const fresh = Math.max(status.percent, copying && progress !== null && status.size !== null
    ? copyPercent({ phase: status.phase, progress, size: status.size }) : 0);
  const refined = refine(status.phase, progress);
  const held = shown !== null && phaseOrder.indexOf(shown.phase) > phaseOrder.indexOf(refined);
  const most = (field: 'bytesOnWire' | 'bytesDone' | 'bytesPlanned' | 'round'): number =>
    Math.max(shown?.[field] ?? 0, progress?.[field] ?? 0);
  return {
    phase: held ? shown.phase : refined,
    percent: Math.min(100, Math.max(shown?.percent ?? 0, Math.round(fresh * 10) / 10)),
    bytesOnWire: most('bytesOnWire'), bytesDone: most('bytesDone'),
    bytesPlanned: most('bytesPlanned'), round: most('round'),
    sendBytesPerSecond: progress?.sendBytesPerSecond ?? 0,
    dirtyBytesPerSecond: progress?.dirtyBytesPerSecond ?? 0,
    etaMs: progress?.etaMs ?? null,
    estimatedDowntimeMs: progress?.estimatedDowntimeMs ?? null,
    paused: progress?.paused ?? false,
    convergence: progress?.convergence ?? '',
    outlook: progress?.outlook ?? 'unknown',
    mirrorMode: progress?.mirrorMode ?? 'none',
    waitsFor: status.waitingFor?.what ?? null,
    check: status.phase === 'verify' ? check : null,
  };
}

/** "850 ms", "12.3 s", "4 min 05 s", "2 h 03 min". */
export function formatMillis(value: number): string {
  if (value < 1_000) return `${value < 10 ? Math.round(value * 10) / 10 : Math.round(value)} ms`;
  if (value < 59_950) return `${(value / 1_000).toFixed(1)} s`;
  const seconds = Math.round(value / 1_000);
  const two = (count: number): string => String(count).padStart(2, '0');
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  return `${Math.floor(seconds / 3_600)} h ${two(Math.floor((seconds % 3_600) / 60))} min`;
}

const barWidth = 24;
/** The percent as a bar with its figure. */
export function percentBar(percent: number): string {
  const filled = Math.floor((percent / 100) * barWidth);
  const bar = '#'.repeat(filled) + '.'.repeat(barWidth - filled);
  return `[${bar}] ${percent.toFixed(1).padStart(5)} %`;
}
const rate = (value: number): string => `${formatBytes(Math.max(0, Math.round(value)))}/s`;

function etaText({ etaMs, outlook }: ProgressView): string {
  if (etaMs !== null) return `ETA ${formatMillis(etaMs)}`;
  if (outlook === 'not-converging') return 'ETA: never under this policy';
  return outlook === 'past-deadline' ? 'ETA: after its deadline' : 'ETA: estimating';
}

function checkTexts({ pagesDone, pagesTotal, etaMs }: CheckProgress): readonly string[] {
  const percent = (pagesDone / Math.max(1, pagesTotal) * 100).toFixed(0);
  return [
    etaMs === null ? 'ETA: estimating' : `ETA ${formatMillis(etaMs)}`,
    `memory compared to ${percent} %; the VM runs at the target`,
  ];
}

/** One line: bar, percent, phase, and the figures that matter in it. */
export function progressLine(view: ProgressView, columns: number | null): string {
  const copying = view.phase === 'copy-disk' || view.phase === 'copy-memory';
  const parts = [
    percentBar(view.percent),
    view.paused ? `${view.phase} (paused)` : view.phase,
    ...(copying ? [
      etaText(view),
      rate(view.sendBytesPerSecond),
      `dirty ${rate(view.dirtyBytesPerSecond)}`,
      `round ${view.round}`,
      ...(view.estimatedDowntimeMs === null
        ? [] : [`downtime ~${formatMillis(view.estimatedDowntimeMs)}`]),
      `${formatBytes(view.bytesOnWire)} on wire`,
      ...(view.mirrorMode === 'write-blocking' ? ['disk writes wait for the target'] : []),
    ] : view.check !== null ? checkTexts(view.check)
      : view.waitsFor === null ? [] : [`waits for ${view.waitsFor}`]),
  ];
  const line = parts.join('  ');
  return columns !== null && line.length >= columns
    ? line.slice(0, Math.max(0, columns - 1)) : line;
}
