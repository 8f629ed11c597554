/** CPU time of everything that runs in the two hosts, and bytes on their wire, during one move. */
import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { namespaceBytes } from '../network/network.ts';
import type { LabHost } from '../network/plan.ts';
import { wanDevice } from '../network/wan.ts';
import { cpuSecondsOf } from '../processes.ts';
import type { CpuSeconds } from '../processes.ts';

/** A process that ends between two looks loses at most this much of its CPU time. */
const lookEveryMs = 100;

/** Pids of the processes whose network namespace is one of these. */
function pidsIn(namespaceLinks: ReadonlySet<string>): number[] {
  const pids: number[] = [];
  for (const entry of readdirSync('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) continue;
    try {
      if (namespaceLinks.has(readlinkSync(`/proc/${pid}/ns/net`))) pids.push(pid);
    } catch {
      // It ended between listing and reading.
    }
  }
  return pids;
}

/** What a move cost. */
export interface MoveCost extends CpuSeconds {
  /** Sent and received by host 1 on the migration network, every header included. */
  readonly wireBytes: number;
  /** Most resident memory of one host runner; 0 when none ran. */
  readonly runnerRssBytesMax: number;
}

const runnerProgram = 'runners/host/main.ts';

/** Resident bytes of a host runner; 0 for every other process. */
function runnerRssBytes(pid: number): number {
  try {
    if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(runnerProgram)) return 0;
    const line = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return Number(line?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Runs from before a move to after it. */
export class MoveMeter {
  readonly #host: LabHost;
  readonly #links: ReadonlySet<string>;
  readonly #first = new Map<number, CpuSeconds>();
  readonly #last = new Map<number, CpuSeconds>();
  readonly #timer: NodeJS.Timeout;
  #wireBefore = 0;
  #runnerRssBytesMax = 0;

  private constructor(hosts: readonly [LabHost, LabHost]) {
    this.#host = hosts[0];
    this.#links = new Set(hosts.map(
      (host) => `net:[${statSync(`/run/netns/${host.namespace}`).ino}]`));
    for (const pid of pidsIn(this.#links)) this.#first.set(pid, cpuSecondsOf(pid));
    this.#timer = setInterval(() => this.#look(), lookEveryMs);
  }

  static async begin(hosts: readonly [LabHost, LabHost]): Promise<MoveMeter> {
    const meter = new MoveMeter(hosts);
    meter.#wireBefore = await meter.#wire();
    return meter;
  }

  async end(): Promise<MoveCost> {
    clearInterval(this.#timer);
    this.#look();
    let [hostSeconds, guestSeconds] = [0, 0];
    for (const [pid, last] of this.#last) {
      const first = this.#first.get(pid) ?? { hostSeconds: 0, guestSeconds: 0 };
      hostSeconds += Math.max(0, last.hostSeconds - first.hostSeconds);
      guestSeconds += Math.max(0, last.guestSeconds - first.guestSeconds);
    }
    return {
      hostSeconds, guestSeconds, runnerRssBytesMax: this.#runnerRssBytesMax,
      wireBytes: await this.#wire() - this.#wireBefore,
    };
  }

  #look(): void {
    for (const pid of pidsIn(this.#links)) {
      const now = cpuSecondsOf(pid);
      this.#runnerRssBytesMax = Math.max(this.#runnerRssBytesMax, runnerRssBytes(pid));
      const before = this.#last.get(pid);
      if (before === undefined || now.hostSeconds + now.guestSeconds > 0) this.#last.set(pid, now);
    }
  }

  /** Cable and emulated link: only one of the two has the address, and the traffic. */
  async #wire(): Promise<number> {
    let sum = 0;
    for (const device of [this.#host.migrationInterface, wanDevice]) {
      const bytes = await namespaceBytes(this.#host.namespace, device);
      if (bytes !== null) sum += bytes.receivedBytes + bytes.sentBytes;
    }
    return sum;
  }
}
