/**
 * Writes to Redis at a steady interval over one TCP connection, remembers what was acknowledged,
 * and reads it back. A connection that breaks is never made again: that is the finding.
 */
import { createClient } from '@redis/client';
import { nowMs } from './gaps.ts';
import type { GapMeter } from './gaps.ts';

/** Writes under way at once; open-loop, so that a stall is seen by every write that falls in it. */
const writesOpenMax = 256;
/** Keys per MGET and UNLINK. */
const keysPerCommand = 500;
const connectMsMax = 10_000;

/** What became of the writes since the last read-back. */
export interface ReadBack {
  readonly ackedWrites: number;
  readonly lostWrites: number;
  readonly failedWrites: number;
  readonly connectionLost: boolean;
}

const redisAt = ({ address, port }: { readonly address: string; readonly port: number }) =>
  createClient({
    socket: {
      host: address, port, noDelay: true, connectTimeout: connectMsMax, reconnectStrategy: false,
    },
    disableOfflineQueue: true,
  });
type RedisClient = ReturnType<typeof redisAt>;

/** One steady writer. `nowMs` is the clock of the meter. */
export class RedisWriter {
  readonly #client: RedisClient;
  readonly #meter: GapMeter;
  readonly #prefix: string;
  readonly #options: { readonly address: string; readonly port: number };
  readonly #acked = new Map<string, string>();
  #next = 0;
  #open = 0;
  #failed = 0;
  #lost = false;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: {
    readonly address: string;
    readonly port: number;
    readonly prefix: string;
    readonly meter: GapMeter;
  }) {
    this.#meter = options.meter;
    this.#options = options;
    this.#prefix = options.prefix;
    this.#client = redisAt(options);
    this.#client.on('error', () => (this.#lost = true));
    this.#client.on('end', () => (this.#lost = true));
  }

  async connect(): Promise<void> {
    await this.#client.connect();
  }

  /** Begins to write every `everyMs`. */
  start(everyMs: number): void {
    this.#timer ??= setInterval(() => this.#write(), everyMs);
  }

  /** Stops writing and waits for the writes under way, at most 10 s. */
  async stop(): Promise<void> {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
    for (const end = performance.now() + 10_000; this.#open > 0 && performance.now() < end;) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** Reads back every acknowledged write, removes the keys, and starts a new count. */
  async readBack(): Promise<ReadBack> {
    let lostWrites = 0;
    for (const part of this.#parts()) {
      try {
        lostWrites += await this.#lostOf(part, this.#client);
        await this.#client.unlink(part);
      } catch {
        this.#lost = true;
        lostWrites += part.length;
      }
    }
    return this.#countAnew(lostWrites);
  }

  /**
   * The same on a connection of its own: of a guest that was booted again. Fails, with nothing
   * counted, while its database does not answer yet; the keys stay.
   */
  async readBackAnew(): Promise<ReadBack> {
    const client = redisAt(this.#options);
    client.on('error', () => undefined);
    await client.connect();
    try {
      let lostWrites = 0;
      for (const part of this.#parts()) lostWrites += await this.#lostOf(part, client);
      return this.#countAnew(lostWrites);
    } finally {
      client.destroy();
    }
  }

  #parts(): string[][] {
    const keys = [...this.#acked.keys()];
    return Array.from({ length: Math.ceil(keys.length / keysPerCommand) }, (_, index) =>
      keys.slice(index * keysPerCommand, (index + 1) * keysPerCommand));
  }

  async #lostOf(part: readonly string[], client: RedisClient): Promise<number> {
    const values = await client.mGet([...part]);
    return part.filter((key, index) => values[index] !== this.#acked.get(key)).length;
  }

  #countAnew(lostWrites: number): ReadBack {
    const keys = [...this.#acked.keys()];
    const report = {
      ackedWrites: keys.length, lostWrites, failedWrites: this.#failed,
      connectionLost: this.#lost,
    };
    this.#acked.clear();
    this.#failed = 0;
    return report;
  }

  get ackedWrites(): number {
    return this.#acked.size;
  }

  get connectionLost(): boolean {
    return this.#lost;
  }

  /** Fills the database with `bytes` of values of 16 KiB that do not compress. */
  async fill(bytes: number, random: (length: number) => Buffer): Promise<void> {
    const valueBytes = 16_384;
    for (let done = 0; done < bytes; done += valueBytes) {
      await this.#client.set(`${this.#prefix}:data:${done}`, random(valueBytes));
    }
  }

  close(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    if (this.#client.isOpen) this.#client.destroy();
  }

  #write(): void {
    if (this.#lost || this.#open >= writesOpenMax) return;
    const number = this.#next++;
    const key = `${this.#prefix}:${number}`;
    const value = `${number}:${'x'.repeat(number % 64)}`;
    this.#open += 1;
    this.#client.set(key, value).then(
      () => {
        this.#acked.set(key, value);
        this.#meter.tick(nowMs());
      },
      () => (this.#failed += 1),
    ).finally(() => (this.#open -= 1));
  }
}
