/** Looks at the link emulator's counters around one move. */
import { linkDistrust, linkUse } from '../network/wan-trust.ts';
import type { LinkUse, WanCounters } from '../network/wan-trust.ts';
import { readWanCounters } from '../network/wan.ts';
import type { LabProcess } from '../processes.ts';

/** What the link was like during one move, and why that does not count; null when it does. */
export interface LinkReading {
  readonly use: LinkUse;
  readonly distrust: string | null;
}

/** Watches one emulator, one move at a time. */
export class LinkWatch {
  readonly #emulator: LabProcess;
  #before: WanCounters | null = null;

  constructor(emulator: LabProcess) {
    this.#emulator = emulator;
  }

  async begin(): Promise<void> {
    this.#before = await readWanCounters(this.#emulator);
  }

  async end(): Promise<LinkReading | null> {
    const before = this.#before;
    this.#before = null;
    if (before === null) return null;
    const use = linkUse(before, await readWanCounters(this.#emulator));
    return { use, distrust: linkDistrust(use) };
  }
}
