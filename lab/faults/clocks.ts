/**
 * Clocks of single processes of a lab, which are set while these run: native/lab-clock is preloaded
 * into them and reads here what time it is to say. The machine's clocks are never touched.
 */
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../guest-image.ts';
import type { Lab } from '../lab.ts';

const library = join(projectRoot, 'native/target/release/libnovacron_lab_clock.so');
const nsPerMs = 1_000_000n;
/** A rate of one. */
const million = 1_000_000n;

const pathOf = (lab: Lab, process: string): string =>
  join(lab.directories.data, `${process}.clock`);

/** How the clocks of a process are off. */
export interface ClockSetting {
  /** The wall clock alone, ms. */
  readonly wallOffsetMs: number;
  /** All clocks; 1 is right. */
  readonly rate: number;
}
const right: ClockSetting = { wallOffsetMs: 0, rate: 1 };

/** As the library reads it: six numbers of 64 bits, the first and the last of them equal. Pure. */
export function clockBytes(
  { wallOffsetMs, rate }: ClockSetting,
  { count, sinceNs, aheadNs }: {
    readonly count: bigint; readonly sinceNs: bigint; readonly aheadNs: bigint;
  },
): BigInt64Array<ArrayBuffer> {
  return BigInt64Array.of(count, BigInt(Math.round(wallOffsetMs)) * nsPerMs,
    BigInt(Math.round(rate * Number(million))), sinceNs, aheadNs, count);
}

/** The clocks of one process. They are right until they are set. */
export class ProcessClock {
  readonly environment: Readonly<Record<string, string>>;
  readonly #path: string;
  #rate = million;
  #sinceNs = process.hrtime.bigint();
  #aheadNs = 0n;
  #count = 1n;

  constructor(lab: Lab, name: string) {
    this.#path = pathOf(lab, name);
    this.environment = { LD_PRELOAD: library, NOVACRON_LAB_CLOCK: this.#path };
    writeFileSync(this.#path, new Uint8Array(this.#bytes(right).buffer), { mode: 0o644 });
  }

  /** From now on; what clocks that ran fast have gained they keep, as real ones do. */
  set(setting: ClockSetting): void {
    const nowNs = process.hrtime.bigint();
    this.#aheadNs += (nowNs - this.#sinceNs) * (this.#rate - million) / million;
    this.#sinceNs = nowNs;
    this.#rate = BigInt(Math.round(setting.rate * Number(million)));
    this.#count += 1n;
    // In place: the process has the file mapped.
    const file = openSync(this.#path, 'r+');
    try {
      writeSync(file, new Uint8Array(this.#bytes(setting).buffer), 0, undefined, 0);
    } finally {
      closeSync(file);
    }
  }

  /** Right again, but for what they have gained or lost. */
  mend(): void {
    this.set(right);
  }

  #bytes(setting: ClockSetting): BigInt64Array<ArrayBuffer> {
    return clockBytes(setting,
      { count: this.#count, sinceNs: this.#sinceNs, aheadNs: this.#aheadNs });
  }
}
