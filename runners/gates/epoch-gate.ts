/**
 * An epoch, durable beside what it guards. Decides who may write: only writers of the gate's epoch
 * or a higher one, and `raise` answers only when no write of a lower epoch is in flight or queued.
 * Which epoch is right is the ledger's to say.
 */
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { readChecked, writeDurably } from '../hypervisor/durable-file.ts';

/** A writer that was told to leave ends its write and closes; a dead link is cut by its owner. */
export const drainTimeoutMsDefault = 5_000;

const fileShape = z.strictObject({ version: z.literal(1), epoch: z.int().min(0) });

/** The right to write until `leave`, or until the gate is raised above its epoch. */
export interface WritePass {
  readonly epoch: number;
  /** False once the gate is higher: queue nothing more. */
  readonly valid: boolean;
  /** To be called when nothing of this writer is in flight any more. Idempotent. */
  leave(): void;
}

interface Writer {
  readonly epoch: number;
  readonly onRaised: (epoch: number) => void;
}

/** The gate in front of a VM's volumes. One instance per file and process. */
export class EpochGate {
  readonly #path: string;
  readonly #writers = new Set<Writer>();
  readonly #left = new Set<() => void>();
  /** Highest epoch that somebody asked for: no lower one is raised to any more. */
  #asked: number;
  /** Epoch in the file, and in force: lower writers are refused. */
  #epoch: number;
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(path: string, epoch: number) {
    this.#path = path;
    this.#epoch = epoch;
    this.#asked = epoch;
  }

  /**
   * Opens the gate whose epoch is kept at `path`; a new one stands at 0. Failure: host/files
   * (damaged).
   */
  static async open(path: string): Promise<EpochGate> {
    const kept = await readChecked(path, fileShape);
    return new EpochGate(path, kept?.epoch ?? 0);
  }

  /** Durable epoch. */
  get epoch(): number {
    return this.#epoch;
  }

  /**
   * Registers a writer. `onRaised` is called once with the new epoch when the gate goes above the
   * writer's: it must stop queueing, finish or drop what is in flight, and `leave`. Failure:
   * ownership/refused.
   */
  enter(options: {
    readonly epoch: number;
    readonly onRaised: (epoch: number) => void;
  }): WritePass {
    const { epoch } = options;
    if (!Number.isSafeInteger(epoch) || epoch < this.#epoch) {
      throw new CodedError('ownership/refused', `epoch ${epoch} at a gate of ${this.#epoch}`);
    }
    const writer: Writer = { epoch, onRaised: options.onRaised };
    this.#writers.add(writer);
    const isValid = (): boolean => this.#writers.has(writer) && epoch >= this.#epoch;
    return {
      epoch,
      get valid() {
        return isValid();
      },
      leave: () => {
        if (!this.#writers.delete(writer)) return;
        for (const wake of this.#left) wake();
      },
    };
  }

  /**
   * Raises the gate: the file first, then in force, and it resolves when no lower writer is left.
   * The same epoch again is no change, but waits for stragglers too, so a caller may repeat after
   * vmm/timeout: the gate is up already then. When the file can't be written nothing has changed.
   * Failure: ownership/refused for a lower epoch; vmm/timeout.
   */
  async raise(epoch: number, options: { readonly drainTimeoutMs?: number } = {}): Promise<void> {
    if (!Number.isSafeInteger(epoch) || epoch < this.#asked) {
      throw new CodedError('ownership/refused', `epoch ${epoch} at a gate of ${this.#asked}`);
    }
    this.#asked = epoch;
    const written = this.#turn.then(() => this.#enforce(epoch));
    this.#turn = written.catch(() => undefined);
    await written;
    await this.#drained(epoch, options.drainTimeoutMs ?? drainTimeoutMsDefault);
  }

  async #enforce(epoch: number): Promise<void> {
    if (epoch <= this.#epoch) return;
    await writeDurably(this.#path, `${JSON.stringify({ version: 1, epoch })}\n`);
    this.#epoch = epoch;
    for (const writer of this.#writers) if (writer.epoch < epoch) writer.onRaised(epoch);
  }

  #drained(epoch: number, timeoutMs: number): Promise<void> {
    const isDrained = (): boolean => [...this.#writers].every((writer) => writer.epoch >= epoch);
    if (isDrained()) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#left.delete(look);
      };
      const look = (): void => {
        if (!isDrained()) return;
        end();
        resolve();
      };
      const timer = setTimeout(() => {
        end();
        reject(new CodedError('vmm/timeout', `writers below epoch ${epoch} after ${timeoutMs} ms`));
      }, timeoutMs);
      this.#left.add(look);
    });
  }
}
