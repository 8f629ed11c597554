/**
 * What a host runner counts for Prometheus: VMs here, moves under way, and how the moves away from
 * here ended. Decides names and buckets; what a move is worth telling users is progress, not this.
 */
import { Counter, Gauge, Histogram } from 'prom-client';
import type { Registry } from 'prom-client';
import type { HostOperations } from '../../activities/host-operations.ts';
import type { SessionOutcome } from '../../contracts/migration.ts';

/** Around the downtimes that budgets ask for, seconds. */
const downtimeBuckets = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
/** From an idle guest to a large one over a thin link, seconds. */
const moveBuckets = [1, 2, 5, 10, 30, 60, 300, 1_800, 7_200];
const millisASecond = 1_000;

/** Where the present figures come from. */
export interface HostFigures {
  /** VMs whose VMM lives; must not ask a VMM, which may stand still. */
  readonly livingVmCount: () => Promise<number>;
  readonly openMoveCount: () => number;
}

/** Notes how one move away from here ended. */
export type NoteMove = (outcome: SessionOutcome) => void;

/** Registers the figures. */
export function registerHostMetrics(registry: Registry, figures: HostFigures): NoteMove {
  const registers = [registry];
  new Gauge({
    name: 'novacron_vms', help: 'VMs of this host whose VMM lives', registers,
    async collect() { this.set(await figures.livingVmCount()); },
  });
  new Gauge({
    name: 'novacron_moves_open', help: 'Moves to and from this host that are under way', registers,
    collect() { this.set(figures.openMoveCount()); },
  });
  const ended = new Counter({
    name: 'novacron_moves_away_total', registers, labelNames: ['outcome', 'code'],
    help: 'Moves away from this host that ended; code is that of the failure',
  });
  const downtime = new Histogram({
    name: 'novacron_move_downtime_seconds', registers, buckets: downtimeBuckets,
    help: 'STOP at this host until RESUME at the target',
  });
  const duration = new Histogram({
    name: 'novacron_move_seconds', registers, buckets: moveBuckets,
    help: 'From the session\'s start until the hand-over was closed',
  });
  const wire = new Counter({
    name: 'novacron_move_wire_bytes_total', registers,
    help: 'Bytes at the socket of moves that were handed over, until then',
  });
  return (outcome) => {
    const code = outcome.kind === 'failed' ? outcome.failure.code : '';
    ended.inc({ outcome: outcome.kind, code });
    if (outcome.kind !== 'handed-over') return;
    downtime.observe(outcome.figures.downtimeMs / millisASecond);
    duration.observe(outcome.figures.totalMs / millisASecond);
    wire.inc(outcome.figures.bytesOnWire);
  };
}

/** The same operations; each move that ends is noted once, however often its step is repeated. */
export function countedMoves(operations: HostOperations, note: NoteMove): HostOperations {
  /** Of each VM the attempt that was noted, until the VM has left or stays. */
  const noted = new Map<string, string>();
  return {
    ...operations,
    copyMemoryAndSwitchOver: async (input, call) => {
      const outcome = await operations.copyMemoryAndSwitchOver(input, call);
      const attempt = `${input.migration} ${input.endpoint.session ?? ''}`;
      if (noted.get(input.vm) !== attempt) note(outcome);
      noted.set(input.vm, attempt);
      return outcome;
    },
    releaseSource: async (input, call) => {
      const late = await operations.releaseSource(input, call);
      noted.delete(input.vm);
      return late;
    },
    abortSource: async (input, call) => {
      await operations.abortSource(input, call);
      noted.delete(input.vm);
    },
  };
}
