/**
 * Watches a VMM from a QMP socket of its own and keeps the stamps of its events. Downtime of every
 * engine is taken here, from the VMMs' own stamps, which come from one clock on one machine.
 */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../../contracts/failures.ts';
import { QmpClient } from '../../runners/hypervisor/qmp/client.ts';
import type { QmpEvent } from '../../runners/hypervisor/qmp/client.ts';
import type { TotalPartsMs } from './engine.ts';

/** Events kept of one VMM: a move makes fewer than 100. */
const eventsKeptMax = 2_000;

/** An event as it was stamped by the VMM, microseconds since 1970. */
export interface StampedEvent {
  readonly name: string;
  readonly stampUs: number;
  readonly status: string | null;
}

/** When no vCPU ran. */
export interface Blackout {
  /** The source's last STOP, ms since 1970 by the machine's clock. */
  readonly beganAtMs: number;
  /** From there to the first RESUME after it at the target. */
  readonly downtimeMs: number;
}

/** The blackout of a move; null when an event is missing. Pure. */
export function blackoutOf(
  source: readonly StampedEvent[], target: readonly StampedEvent[],
): Blackout | null {
  const resume = target.find((event) => event.name === 'RESUME');
  if (resume === undefined) return null;
  const stop = source.findLast(
    (event) => event.name === 'STOP' && event.stampUs <= resume.stampUs);
  return stop === undefined ? null
    : { beganAtMs: stop.stampUs / 1000, downtimeMs: (resume.stampUs - stop.stampUs) / 1000 };
}

/**
 * Parts of QEMU's own total, from its events: MIGRATION setup and active at the source, STOP,
 * RESUME, and the later MIGRATION completed of the two ends. Null when one is missing. Pure.
 */
export function totalPartsOf(
  source: readonly StampedEvent[], target: readonly StampedEvent[],
): TotalPartsMs | null {
  const migration = (events: readonly StampedEvent[], status: string): number | undefined =>
    events.find((event) => event.name === 'MIGRATION' && event.status === status)?.stampUs;
  const setup = migration(source, 'setup');
  const active = migration(source, 'active');
  const ends = [migration(source, 'completed'), migration(target, 'completed')];
  const blackout = blackoutOf(source, target);
  const resume = target.find((event) => event.name === 'RESUME')?.stampUs;
  if (setup === undefined || active === undefined || resume === undefined || blackout === null
    || ends[0] === undefined || ends[1] === undefined) return null;
  const { downtimeMs } = blackout;
  return {
    connectMs: (active - setup) / 1000, diskMs: 0,
    memoryMs: (resume - active) / 1000 - downtimeMs, downtimeMs,
    // QEMU may call itself completed before the target's CPUs run.
    closingMs: (Math.max(ends[0], ends[1]) - resume) / 1000,
  };
}

/** One watched VMM. */
export class Observer {
  readonly client: QmpClient;
  readonly events: StampedEvent[] = [];

  private constructor(client: QmpClient) {
    this.client = client;
    client.onEvent((event: QmpEvent) => {
      if (this.events.length >= eventsKeptMax) this.events.shift();
      const status = event.data['status'];
      this.events.push({
        name: event.name, stampUs: event.vmmStampUs,
        status: typeof status === 'string' ? status : null,
      });
    });
  }

  /** Connects as soon as the socket is there, at most after `waitMsMax`. */
  static async attach(socketPath: string, waitMsMax: number): Promise<Observer> {
    for (const end = performance.now() + waitMsMax; ;) {
      if (existsSync(socketPath)) {
        try {
          return new Observer(await QmpClient.connect({ socketPath, timeoutMs: 2_000 }));
        } catch (error) {
          if (performance.now() > end) throw error;
        }
      }
      if (performance.now() > end) {
        throw new CodedError('vmm/timeout', `${socketPath} is not there after ${waitMsMax} ms`);
      }
      await sleep(5);
    }
  }

  /** Waits for an event of that name (and migration status) that came or comes. */
  async saw(wish: {
    readonly name: string; readonly status?: readonly string[]; readonly waitMs: number;
  }): Promise<StampedEvent | null> {
    const wanted = (event: StampedEvent): boolean => event.name === wish.name
      && (wish.status === undefined || wish.status.includes(event.status ?? ''));
    for (const end = performance.now() + wish.waitMs; ;) {
      const found = this.events.find(wanted);
      if (found !== undefined) return found;
      if (performance.now() > end || this.client.failure !== null) return null;
      await sleep(2);
    }
  }

  /** Forgets what was seen, before the next move. */
  clear(): void {
    this.events.length = 0;
  }

  close(): void {
    this.client.close();
  }
}
