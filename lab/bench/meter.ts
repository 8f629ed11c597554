/** CPU time of everything that runs in the two hosts, and bytes on their wire, during one move. */
import { readFileSync } from 'node:fs';
import { namespaceBytes } from '../network/network.ts';
import type { LabHost } from '../network/plan.ts';
import { wanDevice } from '../network/wan.ts';
import { cpuSecondsOf } from '../processes.ts';
import type { CpuSeconds } from '../processes.ts';
import { isRunner, linkOf, markOf, pidsIn } from './host-processes.ts';

/** A process that ends between two looks loses at most this much of its CPU time. */
const lookEveryMs = 100;

/** What a move cost; CPU of the engine's own processes in both hosts first. */
export interface MoveCost extends CpuSeconds {
  /** Temporal, ledger and control worker. */
  readonly controlSeconds: number;
  /** What else ran in the hosts: guests of other engines, for a peer the product's runners. */
  readonly othersSeconds: number;
  /** Sent and received by host 1 on the migration network, every header included. */
  readonly wireBytes: number;
  /** Most resident memory of one host runner; 0 when none ran. */
  readonly runnerRssBytesMax: number;
}

/** Resident bytes of a host runner; 0 for every other process. */
function runnerRssBytes(pid: number): number {
  if (!isRunner(pid)) return 0;
  try {
    const line = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return Number(line?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Where the processes of a move are. */
export interface MeterPlace {
  readonly hosts: readonly [LabHost, LabHost];
  /** Namespace of Temporal, the ledger and the control worker. */
  readonly controlNamespace: string;
  /** `mark` of the engine whose move it is. */
  readonly mark: string | null;
}

const zero: CpuSeconds = { hostSeconds: 0, guestSeconds: 0 };
const add = (sum: CpuSeconds, more: CpuSeconds): CpuSeconds => ({
  hostSeconds: sum.hostSeconds + more.hostSeconds,
  guestSeconds: sum.guestSeconds + more.guestSeconds,
});
const sumOf = ({ hostSeconds, guestSeconds }: CpuSeconds): number => hostSeconds + guestSeconds;

/** Runs from before a move to after it. */
export class MoveMeter {
  readonly #place: MeterPlace;
  readonly #hostLinks: ReadonlySet<string>;
  readonly #controlLinks: ReadonlySet<string>;
  readonly #first = new Map<number, CpuSeconds>();
  readonly #last = new Map<number, CpuSeconds>();
  readonly #marks = new Map<number, string | null>();
  readonly #control = new Set<number>();
  readonly #timer: NodeJS.Timeout;
  #wireBefore = 0;
  #runnerRssBytesMax = 0;

  private constructor(place: MeterPlace) {
    this.#place = place;
    this.#hostLinks = new Set(place.hosts.map(({ namespace }) => linkOf(namespace)));
    this.#controlLinks = new Set([linkOf(place.controlNamespace)]);
    for (const pid of this.#pids()) this.#first.set(pid, cpuSecondsOf(pid));
    this.#timer = setInterval(() => this.#look(), lookEveryMs);
  }

  static async begin(place: MeterPlace): Promise<MoveMeter> {
    const meter = new MoveMeter(place);
    meter.#wireBefore = await meter.#wire();
    return meter;
  }

  async end(): Promise<MoveCost> {
    clearInterval(this.#timer);
    this.#look();
    let [own, control, others] = [zero, zero, zero];
    for (const [pid, last] of this.#last) {
      const first = this.#first.get(pid) ?? zero;
      const used = {
        hostSeconds: Math.max(0, last.hostSeconds - first.hostSeconds),
        guestSeconds: Math.max(0, last.guestSeconds - first.guestSeconds),
      };
      if (this.#control.has(pid)) control = add(control, used);
      else if (this.#marks.get(pid) === this.#place.mark) own = add(own, used);
      else others = add(others, used);
    }
    return {
      ...own, controlSeconds: sumOf(control), othersSeconds: sumOf(others),
      runnerRssBytesMax: this.#runnerRssBytesMax, wireBytes: await this.#wire() - this.#wireBefore,
    };
  }

  #pids(): number[] {
    const control = pidsIn(this.#controlLinks);
    for (const pid of control) this.#control.add(pid);
    const inHosts = pidsIn(this.#hostLinks);
    for (const pid of inHosts) {
      // A process is looked at again until its environment is its own: it is there after exec.
      if ((this.#marks.get(pid) ?? null) === null) this.#marks.set(pid, markOf(pid));
    }
    return [...inHosts, ...control];
  }

  #look(): void {
    for (const pid of this.#pids()) {
      const now = cpuSecondsOf(pid);
      this.#runnerRssBytesMax = Math.max(this.#runnerRssBytesMax, runnerRssBytes(pid));
      const before = this.#last.get(pid);
      if (before === undefined || now.hostSeconds + now.guestSeconds > 0) this.#last.set(pid, now);
    }
  }

  /** Cable and emulated link: only one of the two has the address, and the traffic. */
  async #wire(): Promise<number> {
    const [host] = this.#place.hosts;
    let sum = 0;
    for (const device of [host.migrationInterface, wanDevice]) {
      const bytes = await namespaceBytes(host.namespace, device);
      if (bytes !== null) sum += bytes.receivedBytes + bytes.sentBytes;
    }
    return sum;
  }
}
