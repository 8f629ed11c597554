/**
 * The gates of all VMs of a host: the epoch gate, durable in the host's state directory, and the
 * NIC gate in the namespace's nftables. Decides when a card passes and for how long; which epoch is
 * right is the ledger's, how long a lease lasts the lease keeper's.
 */
import type { Logger } from 'pino';
import type { VmName } from '../../contracts/identity.ts';
import { EpochGate } from '../gates/epoch-gate.ts';
import type { NicGate } from '../gates/nic-gate.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { LeaseKeeper } from './lease-keeper.ts';
import type { FencedDisks, VmGates } from './move/ports.ts';

export interface HostGatesOptions {
  readonly nicGate: Pick<NicGate, 'admit' | 'shut'>;
  readonly hypervisor: Pick<Hypervisor, 'spec' | 'tapName'>;
  readonly leases: Pick<LeaseKeeper, 'bind' | 'leftMs'>;
  readonly epochPath: (vm: VmName) => string;
  readonly log: Logger;
}

interface Card {
  readonly macAddress: string;
  readonly tapName: string;
}

export class HostGates {
  readonly #options: HostGatesOptions;
  /** One gate a file: two would not know of each other's writers. Kept when a VM leaves. */
  readonly #epochGates = new Map<VmName, Promise<EpochGate>>();
  /** Cards of VMs that are meant to pass: only they are kept open by renewals. */
  readonly #open = new Map<VmName, readonly Card[]>();

  constructor(options: HostGatesOptions) {
    this.#options = options;
  }

  /** The gates of one VM, whose files are here. Failures: vm/unknown, internal (damaged epoch). */
  readonly of = async (vm: VmName): Promise<VmGates> => {
    const { leases, nicGate } = this.#options;
    const gate = await this.#epochGate(vm);
    // Read now: opening the network is in the way of the first frame after a switchover.
    const { cards, isLeased } = await this.#network(vm);
    return {
      enter: (epoch, disks) => this.#enter({ vm, gate, epoch, disks }),
      raise: (epoch) => gate.raise(epoch),
      bindLease: async (epoch) => {
        if (isLeased) await leases.bind(vm, epoch);
      },
      openNics: async () => {
        this.#open.set(vm, cards);
        const leaseMs = isLeased ? await leases.leftMs(vm) : null;
        // Without a lease that is known here the next renewal opens them.
        if (leaseMs === 0) return;
        await Promise.all(cards.map((card) =>
          nicGate.admit(card, leaseMs === null ? {} : { leaseMs: Math.max(1, leaseMs) })));
      },
      closeNics: async () => {
        this.#open.delete(vm);
        await Promise.all(cards.map((card) => nicGate.shut(card)));
      },
    };
  };

  /** A lease was renewed: the cards of a VM that may use its network pass for so long, ms. */
  readonly admit = async (vm: VmName, leaseMs: number): Promise<void> => {
    for (const card of this.#open.get(vm) ?? []) {
      // Asked for each: a card that is being shut must not be opened again behind it.
      if (this.#open.has(vm)) await this.#options.nicGate.admit(card, { leaseMs });
    }
  };

  /** Gates of a VM that leaves: its cards are shut, its epoch stays. */
  readonly forget = async (vm: VmName): Promise<void> => {
    this.#open.delete(vm);
    const network = await this.#network(vm).catch(() => null);
    for (const card of network?.cards ?? []) await this.#options.nicGate.shut(card);
  };

  #epochGate(vm: VmName): Promise<EpochGate> {
    const known = this.#epochGates.get(vm);
    if (known !== undefined) return known;
    const opening = EpochGate.open(this.#options.epochPath(vm));
    this.#epochGates.set(vm, opening);
    opening.catch(() => this.#epochGates.delete(vm));
    return opening;
  }

  /** A stream that can't be ended stays a writer: a raise then says vmm/timeout, never "done". */
  #enter({ vm, gate, epoch, disks }: {
    readonly vm: VmName; readonly gate: EpochGate; readonly epoch: number;
    readonly disks: FencedDisks;
  }): { leave(): void } {
    const { log } = this.#options;
    const pass = gate.enter({
      epoch,
      onRaised: (raised) => {
        disks.raiseDisks(raised).then(
          () => {
            log.info({ vm, epoch, raised }, 'the disk streams of an earlier epoch have ended');
            pass.leave();
          },
          (error: unknown) => log.error(
            { vm, epoch, raised, error: String(error) }, 'a disk stream could not be ended'),
        );
      },
    });
    return pass;
  }

  async #network(
    vm: VmName,
  ): Promise<{ readonly cards: readonly Card[]; readonly isLeased: boolean }> {
    const { hypervisor } = this.#options;
    const { nics, failover } = await hypervisor.spec(vm);
    return {
      isLeased: failover === 'automatic',
      cards: nics.map(({ macAddress, name }) => ({
        macAddress, tapName: hypervisor.tapName(vm, name),
      })),
    };
  }
}
