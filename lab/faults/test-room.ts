/**
 * A lab and the guest that runs of a campaign move in it. A guest that a run has left as it was is
 * moved on by the next one, from where it is: booting one takes longer than most moves.
 */
import { CodedError } from '../../contracts/failures.ts';
import { guestKindOf } from './cells.ts';
import type { Cell, GuestKind } from './cells.ts';
import type { CampaignGuest, Plant } from './plant.ts';
import { FaultRun } from './run.ts';
import type { RunRecord } from './run.ts';
import { StepClock } from './step-clock.ts';
import { within } from './waiting.ts';

/** Then it is removed, so that what moves leave in a guest stays small and removals are tried. */
const movesOfGuestMax = 8;
/** To end and remove a guest, ms. */
const removeMsMax = 40_000;

/** Nothing happened that must not, and the lab held. */
export const isGood = ({ violations, outcome }: RunRecord): boolean =>
  violations.length === 0 && outcome !== 'lab-failed';

/** True when the next run may move the same guest: its VMM and memory are what they were. Pure. */
export function leavesGuestAsItWas({ cell, outcome, violations }: RunRecord): boolean {
  if (violations.length > 0 || (outcome !== 'completed' && outcome !== 'stayed')) return false;
  if (cell === null) return true;
  // Post-copy is met with a load that leaves more memory in use than the undisturbed move sends.
  return cell.phase !== 'post-copy' && !/-(vmm|guard)$/.test(cell.victim);
}

interface Inmate {
  readonly guest: CampaignGuest;
  readonly kind: GuestKind;
  moves: number;
}

/** One lab for runs. */
export class TestRoom {
  readonly plant: Plant;
  readonly #tell: (what: string) => void;
  #inmate: Inmate | null = null;

  constructor(plant: Plant, tell: (what: string) => void) {
    this.plant = plant;
    this.#tell = tell;
  }

  /** One run. Failure: internal when a guest can't be removed; the lab has to go then. */
  async run(cell: Cell | null, baselineBytes: number | null): Promise<RunRecord> {
    const clock = new StepClock();
    const kind = guestKindOf(cell);
    const { failover, disk } = this.#inmate?.kind ?? kind;
    if (failover !== kind.failover || disk !== kind.disk) await this.#discard();
    clock.end('removal');
    const inmate = this.#inmate ?? await this.#boot(kind);
    clock.end('boot');
    const record = await new FaultRun(this.plant, cell, this.#tell)
      .moveOf(inmate.guest, baselineBytes);
    clock.end('move');
    inmate.moves += 1;
    if (isGood(record)) {
      if (leavesGuestAsItWas(record) && inmate.moves < movesOfGuestMax) {
        await this.plant.settle(inmate.guest);
      } else {
        await this.#discard();
      }
    }
    clock.end('removal');
    const { boot = 0, removal = 0 } = clock.partsMs;
    return {
      ...record, wholeMs: clock.wholeMs, partsMs: { boot, ...record.partsMs, removal },
    };
  }

  async #boot(kind: GuestKind): Promise<Inmate> {
    this.#tell('booting a guest');
    this.#inmate = { guest: await this.plant.boot(kind), kind, moves: 0 };
    return this.#inmate;
  }

  async #discard(): Promise<void> {
    const inmate = this.#inmate;
    if (inmate === null) return;
    this.#inmate = null;
    this.#tell('removing the guest');
    await inmate.guest.outside.close();
    const gone = await within(this.plant.discard(inmate.guest).then(() => true), removeMsMax);
    if (gone !== true) throw new CodedError('internal', `${inmate.guest.vm} could not be removed`);
  }

  /** Ends what asks the guest; the lab takes the rest along. */
  async close(): Promise<void> {
    await this.#inmate?.guest.outside.close();
    await this.plant.lower();
  }
}
