/**
 * VMs that this host lost: the ledger wants them running here, and their VMM died with the host or
 * with its guard while no runner looked. Decides which of those that a starting runner finds
 * stopped are started again, and how often it is tried; whether they may run is the ledger's.
 */
import type { HostName, VmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { VmmExit } from '../hypervisor/guard-process.ts';

/** What a runner sees of a stopped VM when it starts. */
export interface StoppedVm {
  readonly entry: VmEntry;
  readonly host: HostName;
  /** How its last VMM ended; null when nobody was left to say: the host went down under it. */
  readonly exit: VmmExit | null;
  /** An operator stopped it on this host, past the ledger. */
  readonly endedHere: boolean;
}

/** True when nobody wanted it to end: neither an operator nor its guest, which ends with code 0. */
export const isLost = ({ entry, host, exit, endedHere }: StoppedVm): boolean =>
  entry.owner === host && entry.desired === 'running' && entry.lastStarted > 0
  && !endedHere && exit?.code !== 0;

/** A start that failed so often needs a person. */
const triesMax = 5;

/** What is to be done now with a lost VM. `wait`: a move of it is not over in the ledger. */
export type LostStep = 'start' | 'wait' | 'forget';

/** The next step for a VM that was lost, by the ledger's present entry. */
export function nextLostStep(
  { entry, host, isStopped }: {
    readonly entry: VmEntry | null; readonly host: HostName; readonly isStopped: boolean;
  },
): LostStep {
  if (entry === null || entry.owner !== host || entry.desired !== 'running' || !isStopped) {
    return 'forget';
  }
  return entry.phase === 'owned' ? 'start' : 'wait';
}

/** The lost VMs of a runner's life, and the tries to start each. */
export class LostVms {
  readonly #tries = new Map<VmName, number>();

  add(vm: VmName): void {
    this.#tries.set(vm, 0);
  }

  forget(vm: VmName): void {
    this.#tries.delete(vm);
  }

  list(): readonly VmName[] {
    return [...this.#tries.keys()];
  }

  /** Counts a start that failed; false when it is not tried again. */
  failed(vm: VmName): boolean {
    const tries = (this.#tries.get(vm) ?? 0) + 1;
    if (tries >= triesMax) this.#tries.delete(vm);
    else this.#tries.set(vm, tries);
    return tries < triesMax;
  }
}
