/**
 * The gates of all VMs of a host: the epoch gate, durable in the host's state directory, those in
 * front of shared volumes at their servers, and the NIC gate in the namespace's nftables. Decides
 * when a card passes and for how long; which epoch is right is the ledger's, how long a lease lasts
 * the lease keeper's.
 */
import type { Logger } from 'pino';
import { setTimeout as sleep } from 'node:timers/promises';
import { CodedError } from '../../contracts/failures.ts';
import type { VmName } from '../../contracts/identity.ts';
import { sharedDisks, type SharedVolume } from '../../contracts/runner.ts';
import { EpochGate } from '../gates/epoch-gate.ts';
import type { NicGate } from '../gates/nic-gate.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { keepVolumeEpoch } from '../hypervisor/volume-links.ts';
import type { LeaseKeeper } from './lease-keeper.ts';
import type { FencedDisks, VmGates } from './move/ports.ts';

export interface HostGatesOptions {
  readonly nicGate: Pick<NicGate, 'admit' | 'shut'>;
  readonly hypervisor: Pick<Hypervisor, 'spec' | 'tapName' | 'paths'>;
  readonly leases: Pick<LeaseKeeper, 'bind' | 'leftMs'>;
  readonly epochPath: (vm: VmName) => string;
  /** Raises the gate in front of a shared volume, see gates/volume-gate.ts. */
  readonly raiseVolume: (vm: VmName, volume: SharedVolume, epoch: number) => Promise<unknown>;
  readonly log: Logger;
}

/** A volume server restarts in seconds; the VM stands meanwhile. */
const raiseAttemptsMax = 20;
const raiseRetryMs = 300;

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
    const { cards, isLeased, volumes } = await this.#ofSpec(vm);
    return {
      enter: (epoch, disks) => this.#enter({ vm, gate, epoch, disks }),
      raise: async (epoch) => {
        await Promise.all([gate.raise(epoch), this.#raiseVolumes(vm, volumes, epoch)]);
      },
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
    const network = await this.#ofSpec(vm).catch(() => null);
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

  /**
   * The file first: a VMM whose connection the raise cuts comes back under the epoch that holds. A
   * gate that does not answer is asked again: the VM must not run before.
   */
  async #raiseVolumes(
    vm: VmName, volumes: readonly SharedVolume[], epoch: number,
  ): Promise<void> {
    const { hypervisor, raiseVolume, log } = this.#options;
    if (volumes.length === 0) return;
    await keepVolumeEpoch(hypervisor.paths(vm), epoch);
    await Promise.all(volumes.map(async (volume) => {
      for (let attempt = 1; ; attempt += 1) {
        try {
          await raiseVolume(vm, volume, epoch);
          return;
        } catch (error) {
          const isPassing = error instanceof CodedError && error.code === 'preflight/volume';
          if (!isPassing || attempt >= raiseAttemptsMax) throw error;
          log.warn({ vm, epoch, error: String(error) }, 'the volume gate is asked again');
          await sleep(raiseRetryMs);
        }
      }
    }));
  }

  async #ofSpec(vm: VmName): Promise<{
    readonly cards: readonly Card[]; readonly isLeased: boolean;
    readonly volumes: readonly SharedVolume[];
  }> {
    const { hypervisor } = this.#options;
    const spec = await hypervisor.spec(vm);
    const { nics, failover } = spec;
    return {
      isLeased: failover === 'automatic',
      volumes: sharedDisks(spec).map(({ volume }) => volume),
      cards: nics.map(({ macAddress, name }) => ({
        macAddress, tapName: hypervisor.tapName(vm, name),
      })),
    };
  }
}
