/**
 * Twelve guests on the first of three hosts, each as small as the lab's guest image allows, with
 * their clients outside: what tests of evacuations share. Evacuations go by the `novacron` command.
 */
import { expect } from 'vitest';
import { hostName } from '../../contracts/identity.ts';
import { mib } from '../../contracts/units.ts';
import type { GuestLoad } from '../../lab/bench/measure.ts';
import { viewEvacuation } from '../../payloads/evacuation-client.ts';
import type { EvacuationView } from '../../payloads/evacuation-client.ts';
import { MoveStage } from './move-stage.ts';
import type { GuestBefore, StageGuest } from './move-stage.ts';
import { askOperator } from './operator.ts';

const guestCount = 12;
/**
 * All share two cores, and a guest's load ticks 500 times a second: these few write their memory all
 * the time, the others only what their database is given.
 */
const loadedCount = 2;
const quietLoad: GuestLoad = {
  dirtyBytesPerSecond: 100_000, workingSetBytes: mib, order: 'random', pages: 'partial',
};
const outsideEveryMs = 250;

/** What `novacron host evacuate --watch --json` closes with. */
export interface EvacuationAnswer {
  readonly exitCode: number;
  readonly outcome: string;
  readonly movedCount: number;
  readonly skipped: readonly { readonly vm: string; readonly failure: { readonly code: string } }[];
  readonly totalMs: number;
  readonly movesMs: number;
}

export class EvacuationStage {
  readonly stage: MoveStage;
  readonly guests: readonly StageGuest[];
  #befores: readonly GuestBefore[] = [];

  private constructor(stage: MoveStage, guests: readonly StageGuest[]) {
    this.stage = stage;
    this.guests = guests;
  }

  static async raise(): Promise<EvacuationStage> {
    const stage = await MoveStage.raise({ hostCount: 3 });
    try {
      const guests = await Promise.all(Array.from({ length: guestCount }, (_, index) =>
        stage.guest({
          name: `tenant-${index + 1}`, octet: 100 + index, memoryMib: 128, outsideEveryMs })));
      return new EvacuationStage(stage, guests);
    } catch (error) {
      await stage.lower();
      throw error;
    }
  }

  /** All guests work and are written to from now on. */
  async begin(): Promise<void> {
    this.#befores = await Promise.all(this.guests.map(async (guest, index) => {
      if (index < loadedCount) return guest.begin(quietLoad);
      await guest.outside.startWriting();
      return {
        status: await guest.outside.witness({ op: 'status' }),
        entry: await this.stage.entry(guest.vm),
      };
    }));
  }

  /** Evacuates the first host; answers when it is over. */
  async evacuate(...args: string[]): Promise<EvacuationAnswer> {
    const out = await askOperator(
      this.stage, 'host', 'drain', 'h1', '--watch', '--json', ...args);
    return JSON.parse(out.trim().split('\n').at(-1) ?? '') as EvacuationAnswer;
  }

  view(): Promise<EvacuationView> {
    return viewEvacuation(this.stage.client, hostName('h1'));
  }

  /** Every guest runs, whole, on another host than the first; answers how many on each. */
  async expectAllArrived(): Promise<Record<string, number>> {
    await Promise.all(this.guests.map(async (guest, index) => {
      const before = this.#befores[index];
      if (before === undefined) throw new Error('the guests have not begun');
      const host = await guest.host();
      expect(host.name, guest.vm).not.toBe('h1');
      const { epoch } = await this.stage.entry(guest.vm);
      await guest.expectAt(host, before, epoch - before.entry.epoch);
    }));
    const hosts = await Promise.all(this.guests.map(async (guest) => (await guest.host()).name));
    return Object.fromEntries([...new Set(hosts)].toSorted()
      .map((name) => [name, hosts.filter((one) => one === name).length]));
  }
}
