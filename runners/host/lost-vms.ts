/**
 * VMs that stand without a VMM although the ledger wants them running here: the VMM died, alone or
 * with its guard or its host, whether a runner looked or not. Decides which of them are started
 * again, cold, which had ended by somebody's will, and how often a start is tried; whether they may
 * run is the ledger's. A VM whose move may still go back is left to the move's own rules.
 */
import type { HostName, VmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { VmmExit } from '../hypervisor/guard-process.ts';

/** What a runner sees of a stopped VM. */
export interface StoppedVm {
  readonly entry: VmEntry;
  readonly host: HostName;
  /** How its last VMM ended; null when nobody was left to say: the host went down under it. */
  readonly exit: VmmExit | null;
  /** An operator stopped it on this host, past the ledger. */
  readonly endedHere: boolean;
  /** This runner saw it run since the last stop that was asked for. */
  readonly ranHere: boolean;
}

/** `record`: the ledger is told that it was ended on purpose. */
export type StoppedStep = 'leave' | 'start' | 'record';

/**
 * What is to be done now with a stopped VM. An end on purpose (an operator's, or its guest's, whose
 * VMM ends with code 0 unless a signal told it to) is recorded only if this runner saw the VM run:
 * to one that has just started, a wish to run may be newer than the end. Not so where the end of a
 * move is still open, for nobody may wish anything then.
 */
export function stoppedStep({ entry, host, exit, endedHere, ranHere }: StoppedVm): StoppedStep {
  // A move that has started here, whose VMM and session are gone, goes on by a cold boot only.
  const isDecided = entry.phase === 'owned'
    || (entry.phase === 'unsettled' && entry.lastStarted === entry.epoch);
  const isWanted = entry.owner === host && isDecided
    && entry.desired === 'running' && entry.lastStarted > 0;
  if (!isWanted) return 'leave';
  const isByGuest = exit?.code === 0 && exit.toldBySignal === undefined;
  const isOnPurpose = endedHere || isByGuest;
  if (!isOnPurpose) return 'start';
  return ranHere || entry.phase === 'unsettled' ? 'record' : 'leave';
}

/** How a VMM ended, for the ledger's record. */
export function exitText(exit: VmmExit | null): string {
  if (exit === null) return 'its VMM is gone, with its guard or its host';
  if (exit.toldBySignal !== undefined) {
    return `its VMM was told to end by signal ${exit.toldBySignal}`;
  }
  return exit.signal === null
    ? `its VMM ended with code ${exit.code}` : `its VMM was ended by signal ${exit.signal}`;
}

/** More starts than this in the window, and the VM waits: it would only fail again. */
const startCountMax = 5;
const windowMs = 600_000;

/** The starts of lost VMs in a runner's life. */
export class RestartBudget {
  readonly #startedAtMs = new Map<VmName, readonly number[]>();

  /** Counts a start; false when there were too many of late, and this one is not to be made. */
  take(vm: VmName, nowMs: number): boolean {
    const recent = (this.#startedAtMs.get(vm) ?? []).filter((atMs) => nowMs - atMs < windowMs);
    const isAllowed = recent.length < startCountMax;
    this.#startedAtMs.set(vm, isAllowed ? [...recent, nowMs] : recent);
    return isAllowed;
  }

  /** The VM is gone from this host, or started by somebody. */
  forget(vm: VmName): void {
    this.#startedAtMs.delete(vm);
  }
}
