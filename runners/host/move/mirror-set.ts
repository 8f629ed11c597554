/**
 * All disk mirrors of one move at the source as one thing. Decides when they count as in sync and
 * when they go write-blocking; how a job is driven is runners/hypervisor/disk-mirror.ts.
 */
import type { Logger } from 'pino';
import { CodedError } from '../../../contracts/failures.ts';
import { allocatedBytes } from '../../hypervisor/disk-allocation.ts';
import {
  askWriteBlocking, canChangeMirrorMode, cancelMirror, cutMirror, mirrorFailure, mirrorProgress,
  setMirrorSpeed, startMirror, switchToWriteBlocking, waitMirrorDrained,
} from '../../hypervisor/disk-mirror.ts';
import type { QmpClient } from '../../hypervisor/qmp/client.ts';
import { freshPace, judgePace } from './mirror-pace.ts';
import type { MirrorProgress, SourceDisks } from './ports.ts';

/** How often the jobs are asked while they copy, ms; and when one is nearly through. */
const lookEveryMs = 200;
const lastLookEveryMs = 20;
/** A link of 125 MB/s carries it between two looks. */
const nearlyThroughBytes = 25_000_000;
/** What is left at STOP is sent in the blackout: a job that can't do it by then has failed, ms. */
const drainTimeoutMs = 10_000;
/** Going write-blocking waits for what is in flight, ms. */
const tightenTimeoutMs = 60_000;

/** What users read while, and after, a guest's writes are held back. */
const outrunText = (disks: readonly string[]): string =>
  `the guest writes to ${disks.join(', ')} faster than the link: its writes wait for the target`
  + ' (write-blocking mirror)';

interface Disk {
  readonly name: string;
  readonly sizeBytes: number;
}

export class MirrorSet implements SourceDisks {
  readonly #qmp: QmpClient;
  readonly #disks: readonly Disk[];
  readonly #log: Logger;
  readonly #done = new Map<string, { done: number; total: number; atStart: number | null }>();
  #allocated: number | null = null;
  #mode: MirrorProgress['mode'] = 'none';
  readonly #heldBack = new Set<string>();
  #said = '';
  #bytesPerSecond = 0;
  /** Events of the VMM before the jobs of this move. */
  #sinceEvent = 0;
  #started: Promise<void> | null = null;
  #cancelled = false;

  constructor(options: {
    readonly qmp: QmpClient; readonly disks: readonly Disk[]; readonly log: Logger;
  }) {
    this.#qmp = options.qmp;
    this.#disks = options.disks;
    this.#log = options.log;
    for (const { name, sizeBytes } of options.disks) {
      this.#done.set(name, { done: 0, total: sizeBytes, atStart: null });
    }
  }

  start(sockets: readonly string[]): Promise<void> {
    this.#started ??= this.#start(sockets);
    return this.#started;
  }

  async #start(sockets: readonly string[]): Promise<void> {
    if (this.#disks.length === 0) return;
    this.#sinceEvent = this.#qmp.eventCount;
    // For estimates alone: without an answer the jobs' own figures have to do.
    this.#allocated = await allocatedBytes(this.#qmp, this.#disks.map(({ name }) => name))
      .catch(() => null);
    // Before 8.2 a running job can't become write-blocking, so it has to be from the start.
    const mode = canChangeMirrorMode(this.#qmp) ? 'background' as const : 'write-blocking' as const;
    for (const [index, { name }] of this.#disks.entries()) {
      const socketPath = sockets[index];
      if (socketPath === undefined) throw new CodedError('internal', `no socket for disk ${name}`);
      await startMirror(this.#qmp, {
        disk: name, socketPath, mode, bandwidthBytesPerSecond: this.#bytesPerSecond,
      });
    }
    this.#mode = mode;
  }

  async synchronised(): Promise<void> {
    await Promise.all(this.#disks.map((disk) => this.#untilReady(disk)));
  }

  async #untilReady({ name }: Disk): Promise<void> {
    let pace = freshPace(performance.now());
    while (!this.#cancelled) {
      const look = await mirrorProgress(this.#qmp, name);
      if (look === null || look.failed) throw this.#failureOf(name);
      const { bytesDone: done, bytesTotal: total } = look;
      this.#done.set(name, { done, total, atStart: this.#done.get(name)?.atStart ?? total });
      if (look.ready) return;
      const bytesLeft = total - done;
      const judged = judgePace(pace, { bytesLeft, nowMs: performance.now() });
      pace = judged.pace;
      if (judged.outrun) await this.#block(name);
      const waitMs = bytesLeft < nearlyThroughBytes ? lastLookEveryMs : lookEveryMs;
      await new Promise((resolve) => { setTimeout(resolve, waitMs); });
    }
  }

  async #block(name: string): Promise<void> {
    if (this.#heldBack.has(name) || !canChangeMirrorMode(this.#qmp)) return;
    this.#heldBack.add(name);
    this.#mode = 'write-blocking';
    this.#said = outrunText([...this.#heldBack]);
    this.#log.warn({ disk: name }, this.#said);
    await askWriteBlocking(this.#qmp, name);
  }

  async setBandwidth(bytesPerSecond: number): Promise<void> {
    this.#bytesPerSecond = bytesPerSecond;
    if (this.#mode === 'none') return;
    for (const { name } of this.#disks) {
      await setMirrorSpeed(this.#qmp, { disk: name, bandwidthBytesPerSecond: bytesPerSecond });
    }
  }

  async tighten(): Promise<void> {
    if (this.#disks.length === 0) return;
    await this.#whileAlive(async () => {
      await this.setBandwidth(0);
      for (const { name } of this.#disks) {
        await switchToWriteBlocking(this.#qmp, { disk: name, timeoutMs: tightenTimeoutMs });
      }
    });
    this.#mode = 'write-blocking';
  }

  async drained(): Promise<void> {
    await this.#whileAlive(() => Promise.all(this.#disks.map(async ({ name }) => {
      await waitMirrorDrained(this.#qmp, { disk: name, timeoutMs: drainTimeoutMs });
      const state = this.#done.get(name);
      if (state !== undefined) this.#done.set(name, { ...state, done: state.total });
    })));
  }

  /** What fails because a mirror is no more fails with why that is so. */
  async #whileAlive(work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      for (const { name } of this.#disks) {
        const look = await mirrorProgress(this.#qmp, name);
        if (look === null || look.failed) throw this.#failureOf(name);
      }
      throw error;
    }
  }

  #failureOf(disk: string): CodedError {
    return mirrorFailure(this.#qmp, { disk, sinceEvent: this.#sinceEvent });
  }

  async cut(): Promise<void> {
    if (this.#mode === 'none') return;
    for (const { name } of this.#disks) await cutMirror(this.#qmp, name);
  }

  async clear(): Promise<void> {
    for (const { name } of this.#disks) await cancelMirror(this.#qmp, name);
  }

  async cancel(): Promise<void> {
    this.#cancelled = true;
    await this.#started?.catch(() => undefined);
    if (this.#mode === 'none') return;
    for (const { name } of this.#disks) await cancelMirror(this.#qmp, name);
  }

  progress(): MirrorProgress {
    let bytesDone = 0;
    let bytesTotal = 0;
    let bytesAtStart = 0;
    for (const { done, total, atStart } of this.#done.values()) {
      bytesDone += done;
      bytesTotal += total;
      bytesAtStart += atStart ?? total;
    }
    return {
      bytesDone, bytesTotal, bytesAtStart, bytesAllocated: this.#allocated, mode: this.#mode,
      bytesPerSecondMax: this.#bytesPerSecond * this.#disks.length, said: this.#said,
    };
  }
}
