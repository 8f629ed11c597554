/** What the control worker's steps ask of the ledger, with its refusals as failures. */
import { CodedError } from '../contracts/failures.ts';
import type { HostName, VmName } from '../contracts/identity.ts';
import type { Ledger, LedgerEvent, Refusal, Verdict, VmEntry } from '../contracts/ownership.ts';
import type { VmLocation } from '../contracts/vm-lifecycle.ts';

/** A migration of the VM is open in the ledger. */
export const isOpen = (entry: VmEntry): boolean =>
  entry.phase === 'preparing' || entry.phase === 'unsettled';

export function refusalError(refusal: Refusal): CodedError {
  return new CodedError(refusal.code, refusal.reason);
}

/** Reads and proposals that every step of the control worker is made of. */
export class LedgerSteps {
  readonly #ledger: Ledger;

  constructor(ledger: Ledger) {
    this.#ledger = ledger;
  }

  async proposeOne(event: LedgerEvent): Promise<Verdict> {
    const [verdict] = await this.#ledger.propose([event]);
    if (verdict === undefined) {
      throw new CodedError('ownership/unreachable', `no answer to ${event.kind}`);
    }
    return verdict;
  }

  async entry(vm: VmName): Promise<VmEntry> {
    const entry = await this.#ledger.readVm(vm);
    if (entry === null || entry.phase === 'absent') throw new CodedError('vm/unknown', vm);
    return entry;
  }

  owner(entry: VmEntry): HostName {
    if (entry.owner === null) throw new CodedError('vm/unknown', `${entry.vm} has no owner`);
    return entry.owner;
  }

  location(entry: VmEntry): VmLocation {
    return {
      host: this.owner(entry),
      epoch: entry.epoch,
      desired: entry.desired,
      inMigration: isOpen(entry),
    };
  }

  /** The entry after an accepted event; throws the refusal. */
  async accepted(vm: VmName, event: LedgerEvent): Promise<VmEntry> {
    const verdict = await this.proposeOne(event);
    if (!verdict.accepted) throw refusalError(verdict);
    return verdict.entry ?? this.entry(vm);
  }
}
