/**
 * QEMU's own migration as an engine, over TCP on the migration network, in settings that are fair
 * to it: bandwidth not capped, downtime limit as shipped (300 ms), multifd channels as ordered, zstd
 * at level 1, post-copy begun after the first pass.
 */
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import type { GuestImage, QemuProgram } from '../../guest-image.ts';
import type { Lab } from '../../lab.ts';
import type { LabHost } from '../../network/plan.ts';
import { engineVariable } from '../engine.ts';
import type { BenchEngine, EngineName, GuestOrder, MoveReport } from '../engine.ts';
import { blackoutOf, totalPartsOf } from '../observer.ts';
import type { Observer } from '../observer.ts';
import { endQemu, startQemu } from './qemu-process.ts';
import type { RunningQemu } from './qemu-process.ts';

export type PeerName = Exclude<EngineName, 'direct'>;

/** Far above any link here: no cap. Bytes per second. */
const uncappedBytesPerSecond = 10 * 1024 ** 3;
/** Channels of multifd that may be asked for. */
export const multifdChannelCounts = [2, 4, 8] as const;
/** The better of 2 and 4 on two cores when that was tried; 8 was not compared yet. */
export const defaultMultifdChannelCount = 2;
/** First port on the target's migration address; each engine has one of its own. */
const firstPort = 4_500;

interface PeerSettings {
  readonly capabilities: readonly string[];
  readonly parameters: Readonly<Record<string, string | number>>;
  readonly postCopy: boolean;
  /** Uses multifd, whose channel count comes with the order. */
  readonly multifd: boolean;
}
const base = { 'max-bandwidth': uncappedBytesPerSecond };

/** Settings of each peer, set on both ends alike. */
export const peerSettings: Readonly<Record<PeerName, PeerSettings>> = {
  'qemu': { capabilities: [], parameters: base, postCopy: false, multifd: false },
  'qemu-multifd': {
    capabilities: ['multifd'], parameters: base, postCopy: false, multifd: true,
  },
  'qemu-multifd-zstd': {
    capabilities: ['multifd'],
    parameters: { ...base, 'multifd-compression': 'zstd', 'multifd-zstd-level': 1 },
    postCopy: false, multifd: true,
  },
  'qemu-postcopy': {
    capabilities: ['postcopy-ram'], parameters: base, postCopy: true, multifd: false,
  },
};

/** `migrate-set-parameters` of a peer. Pure. */
export function peerParameters(
  name: PeerName, multifdChannelCount: number,
): Readonly<Record<string, string | number>> {
  const { parameters, multifd } = peerSettings[name];
  return multifd ? { ...parameters, 'multifd-channels': multifdChannelCount } : parameters;
}

const migrationInfo = z.looseObject({
  status: z.string().optional(),
  'error-desc': z.string().optional(),
  ram: z.looseObject({
    'dirty-sync-count': z.number(), transferred: z.number(),
  }).optional(),
});

/** What a peer engine is made of. */
export interface QemuEngineOptions {
  readonly lab: Lab;
  readonly name: PeerName;
  readonly program: QemuProgram;
  readonly image: GuestImage;
  readonly guest: GuestOrder;
  /** Distinguishes taps and ports of engines that live side by side; 0 to 9. */
  readonly index: number;
  readonly multifdChannelCount: number;
}

/** A peer engine; its guest goes to and fro between host 1 and host 2. */
export class QemuEngine implements BenchEngine {
  readonly name: PeerName;
  readonly mark: string;
  readonly #options: QemuEngineOptions;
  #running: RunningQemu | null = null;
  #starts = 0;

  constructor(options: QemuEngineOptions) {
    this.name = options.name;
    this.mark = String(options.index);
    this.#options = options;
  }

  async boot(): Promise<void> {
    await this.discard();
    const disk = this.#diskPath();
    if (disk !== null) {
      writeFileSync(disk, '');
      truncateSync(disk, this.#options.guest.diskBytes);
    }
    this.#running = await this.#start(this.#options.lab.host(1), false);
  }

  async rest(): Promise<void> {
    await this.#guest().control.client.execute('stop');
  }

  async wake(): Promise<void> {
    await this.#guest().control.client.execute('cont');
  }

  host(): LabHost {
    return this.#guest().host;
  }

  async discard(): Promise<void> {
    const running = this.#running;
    this.#running = null;
    if (running !== null) await endQemu(running);
  }

  async move(limitMs: number): Promise<MoveReport> {
    const source = this.#guest();
    const targetHost = this.#options.lab.host(source.host.number === 1 ? 2 : 1);
    const target = await this.#start(targetHost, true);
    source.observer.clear();
    try {
      const report = await this.#transfer({ source, target, limitMs });
      if (report.outcome === 'completed') {
        this.#running = target;
        await endQemu(source);
      } else {
        await endQemu(target);
      }
      return report;
    } catch (error) {
      await endQemu(target);
      return { outcome: 'failed', reason: (error as Error).message };
    }
  }

  #guest(): RunningQemu {
    if (this.#running === null) throw new Error(`${this.name} has no guest`);
    return this.#running;
  }

  #diskPath(): string | null {
    const { guest, lab, index } = this.#options;
    return guest.diskBytes === 0 ? null : join(lab.directories.data, `peer-${index}.raw`);
  }

  async #start(host: LabHost, incoming: boolean): Promise<RunningQemu> {
    const { lab, program, image, guest, index } = this.#options;
    this.#starts += 1;
    return await startQemu({
      lab, host, program: {
        ...program, environment: { ...program.environment, [engineVariable]: this.mark },
      },
      order: {
        name: `q${index}-${this.#starts}`, guest, image, tap: `tq${index}`,
        diskPath: this.#diskPath(), incoming,
      },
    });
  }

  async #configure(end: Observer): Promise<void> {
    const { capabilities } = peerSettings[this.name];
    const parameters = peerParameters(this.name, this.#options.multifdChannelCount);
    await end.client.execute('migrate-set-capabilities', {
      arguments: {
        capabilities: [...capabilities, 'events'].map(
          (capability) => ({ capability, state: true })),
      },
    });
    await end.client.execute('migrate-set-parameters', { arguments: parameters });
  }

  async #transfer(move: {
    readonly source: RunningQemu; readonly target: RunningQemu; readonly limitMs: number;
  }): Promise<MoveReport> {
    const { source, target } = move;
    await this.#configure(source.control);
    await this.#configure(target.control);
    const uri = `tcp:${target.host.migrationAddress}:${firstPort + this.#options.index}`;
    await target.control.client.execute('migrate-incoming', { arguments: { uri } });
    const endMs = performance.now() + move.limitMs;
    await source.control.client.execute('migrate', { arguments: { uri } });
    if (peerSettings[this.name].postCopy) await this.#startPostCopy(source, endMs);
    const ended = { name: 'MIGRATION', status: ['completed', 'failed', 'cancelled'] };
    const atSource = await source.observer.saw({ ...ended, waitMs: endMs - performance.now() });
    const info = await this.#look(source);
    if (atSource === null) {
      return { outcome: 'timeout', reason: `still ${info.status} after ${move.limitMs} ms, `
        + `${info.ram?.['dirty-sync-count']} passes` };
    }
    if (atSource.status !== 'completed') {
      return { outcome: 'failed', reason: info['error-desc'] ?? String(atSource.status) };
    }
    const atTarget = await target.observer.saw({
      name: 'MIGRATION', status: ['completed'], waitMs: 10_000 });
    await target.observer.saw({ name: 'RESUME', waitMs: 5_000 });
    const begun = source.observer.events.find(
      (event) => event.name === 'MIGRATION' && event.status === 'setup');
    const blackout = blackoutOf(source.observer.events, target.observer.events);
    if (atTarget === null || begun === undefined || blackout === null) {
      return { outcome: 'failed', reason: 'the target did not complete or did not resume' };
    }
    return {
      outcome: 'completed', ...blackout,
      totalMs: (Math.max(atSource.stampUs, atTarget.stampUs) - begun.stampUs) / 1000,
      totalPartsMs: totalPartsOf(source.observer.events, target.observer.events),
      rounds: info.ram?.['dirty-sync-count'] ?? null,
      details: {
        transferredBytes: info.ram?.transferred ?? null,
        ...(peerSettings[this.name].multifd
          ? { multifdChannels: this.#options.multifdChannelCount } : {}),
      },
    };
  }

  async #look(source: RunningQemu): Promise<z.infer<typeof migrationInfo>> {
    return await source.control.client.execute('query-migrate', { reply: migrationInfo });
  }

  /** One pass, then the target runs: the count of dirty syncs is 2 when the first pass is over. */
  async #startPostCopy(source: RunningQemu, endMs: number): Promise<void> {
    while (performance.now() < endMs) {
      const info = await this.#look(source);
      if ((info.ram?.['dirty-sync-count'] ?? 0) >= 2) break;
      if (info.status !== undefined && ['completed', 'failed', 'cancelled'].includes(info.status)) {
        return;
      }
      await sleep(3);
    }
    await source.control.client.execute('migrate-start-postcopy').catch(() => undefined);
  }
}
