/**
 * One run of a campaign: a guest, a move, the fault at its moment, and what came of it, as seen by
 * those outside. Every wait has a limit.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { hostName } from '../../contracts/identity.ts';
import type { MigrationId } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type { MigrationPolicy } from '../../contracts/migration.ts';
import { mib } from '../../contracts/units.ts';
import type { ArmedPoint } from '../../payloads/fault-points-client.ts';
import {
  commandMigration, startMigration, viewMigration,
} from '../../payloads/migration-client.ts';
import { loadRequest } from '../bench/measure.ts';
import type { GuestLoad } from '../bench/measure.ts';
import type { WitnessStatus } from '../client/witness-line.ts';
import { namespaceBytes } from '../network/network.ts';
import { nameOfCell, wayTo } from './cells.ts';
import type { Cell } from './cells.ts';
import { hurt, kill } from './hurt.ts';
import type { CampaignGuest, Plant } from './plant.ts';
import { recover } from './recovery.ts';
import { sayLate, sayTwice } from './repeats.ts';
import { judge } from './verdict.ts';
import type { Judgement } from './verdict.ts';
import { StepClock } from './step-clock.ts';
import { until, within } from './waiting.ts';
import { Watch } from './watch.ts';

/** Until a move comes to its phase, ms. */
const reachMsMax = 40_000;
/** To read back what was acknowledged, ms. */
const readMsMax = 30_000;

const lightLoad: GuestLoad = {
  dirtyBytesPerSecond: 500_000, workingSetBytes: 4 * mib, order: 'random', pages: 'partial',
};
/** Everything of the working set is dirty again before it is sent. */
const heavyLoad: GuestLoad = {
  dirtyBytesPerSecond: 40_000_000, workingSetBytes: 16 * mib, order: 'random', pages: 'full',
};
/** Slow enough that rounds, or missing pages, are met on their way. */
const slowly = { bandwidthBytesPerSecond: 4_000_000 } as const;
const thinly = { postCopy: 'when-needed', bandwidthBytesPerSecond: 3_000_000 } as const;

/** One line of a campaign's results. */
export interface RunRecord extends Judgement {
  /** Null in the run that nothing is done to. */
  readonly cell: Cell | null;
  readonly vcpuRunningMax: number;
  readonly effectiveMax: number;
  /** The larger of the two. */
  readonly runningCopiesMax: number;
  readonly lostWrites: number;
  /** From the fault's end until a new connection is answered, ms; null: it never was. */
  readonly recoveredMs: number | null;
  /** From the fault's end until the move was over, in the ledger and in Temporal, ms. */
  readonly endedMs: number | null;
  /**
   * Sent by the source beyond what the move without a fault sent; all of it where the move ended
   * at the source, because the next one begins anew. Null without such a move to compare with.
   */
  readonly bytesSentAgain: number | null;
  readonly bytesSent: number;
  /** How Temporal says that the move ended. */
  readonly told: string;
  /** False when the fault did nothing to its victim, which needed no memory just then. */
  readonly took: boolean;
  /** The whole run, ms. */
  readonly wholeMs: number;
  /** Where its time went, ms. */
  readonly partsMs: Readonly<Record<string, number>>;
}

/** What the guest says about itself in the end. */
interface GuestLook {
  readonly selfCheckFailures: number;
  readonly counterWentBack: boolean;
  readonly lostWrites: number;
}

/** One move with a fault. */
export class FaultRun {
  readonly #plant: Plant;
  readonly #cell: Cell | null;
  readonly #tell: (what: string) => void;
  readonly #clock = new StepClock();
  /** Epoch that the move began under. */
  #epoch = 0;

  /** Without a cell nothing is done to the move: others are compared with it. */
  constructor(plant: Plant, cell: Cell | null, tell: (what: string) => void) {
    this.#plant = plant;
    this.#cell = cell;
    this.#tell = tell;
  }

  /** Moves a guest that is there already, and stays. Failure: internal. */
  async moveOf(guest: CampaignGuest, baselineBytes: number | null): Promise<RunRecord> {
    const watch = await Watch.begin({ lab: this.#plant.lab, ...guest });
    try {
      const record = await this.#watched(guest, watch, baselineBytes);
      return { ...record, partsMs: this.#clock.partsMs, wholeMs: this.#clock.wholeMs };
    } finally {
      watch.end();
    }
  }

  async #watched(
    guest: CampaignGuest, watch: Watch, baselineBytes: number | null,
  ): Promise<Omit<RunRecord, 'wholeMs' | 'partsMs'>> {
    const before = await this.#begin(guest);
    this.#epoch = (await this.#plant.ledger.readVm(guest.vm))?.epoch ?? 0;
    const sentBefore = await this.#sentBytes();
    this.#clock.end('load');
    const { migration, reached, faultEndMs, twice, took } = await this.#disturb(guest);
    this.#clock.end('fault');
    this.#tell('waiting for the end');
    const after = await recover({ plant: this.#plant, guest, migration, faultEndMs });
    const repeated = this.#cell?.fault === 'late' && after.endedMs !== null
      ? await this.#repeat(guest, migration, sayLate) : null;
    this.#clock.end('recovery');
    const copies = watch.end();
    const bytesSent = await this.#sentBytes() - sentBefore;
    const look = await this.#look(guest, before, after.status);
    this.#clock.end('check');
    const judgement = judge({
      cell: this.#cell, reached, ended: after.endedMs !== null,
      onTarget: after.owner === this.#plant.target.name,
      bootIdBefore: before.bootId, bootId: after.status?.bootId ?? null,
      ...copies, ...look, orphans: after.orphans, toldCompleted: after.told === 'completed',
      contradiction: repeated ?? twice ?? after.contradiction,
    });
    return {
      cell: this.#cell, ...judgement, ...copies,
      runningCopiesMax: Math.max(copies.vcpuRunningMax, copies.effectiveMax),
      lostWrites: look.lostWrites, recoveredMs: after.recoveredMs, endedMs: after.endedMs,
      bytesSent, told: after.told, took,
      bytesSentAgain: judgement.outcome !== 'completed' ? bytesSent
        : baselineBytes === null ? null : Math.max(0, bytesSent - baselineBytes),
    };
  }

  async #begin({ outside }: CampaignGuest): Promise<WitnessStatus> {
    await outside.witness(loadRequest(this.#cell?.phase === 'post-copy' ? heavyLoad : lightLoad));
    await outside.witness({ op: 'start' });
    await outside.startWriting();
    await sleep(500);
    return await outside.witness({ op: 'status' });
  }

  async #sentBytes(): Promise<number> {
    const { namespace, migrationInterface } = this.#plant.source;
    return (await namespaceBytes(namespace, migrationInterface))?.sentBytes ?? 0;
  }

  get #policy(): MigrationPolicy {
    const phase = this.#cell?.phase;
    return {
      ...defaultPolicy, deadlineMs: 120_000,
      ...(phase === 'memory' ? slowly : phase === 'post-copy' ? thinly : {}),
    };
  }

  /** Starts the move, hurts the victim at the phase; answers when the fault was over. */
  async #disturb(guest: CampaignGuest): Promise<{
    readonly migration: MigrationId; readonly reached: boolean; readonly faultEndMs: number;
    /** What requests that came twice have changed; null: nothing. */
    readonly twice: string | null;
    readonly took: boolean;
  }> {
    const { client, target } = this.#plant;
    const { vm } = guest;
    const cell = this.#cell;
    const way = cell === null ? null : wayTo(cell.phase);
    const first = way === null ? null : await this.#plant.arm(way.point, vm);
    const held = cell === null || cell.phase === 'memory' || cell.phase === 'post-copy'
      ? null : await this.#plant.arm(cell.phase, vm);
    const { migration } = await startMigration(client, {
      version: 1, vm, target: hostName(target.name), policy: this.#policy,
      request: this.#plant.freshRequest(),
    });
    if (cell === null) {
      return { migration, reached: true, faultEndMs: performance.now(), twice: null, took: true };
    }
    this.#tell(`waiting for ${cell.phase}`);
    if (way !== null && first !== null && await within(first.reached, reachMsMax) === true) {
      await kill({
        plant: this.#plant, vm, victim: way.victim, fault: 'sigkill', release: () => undefined });
      first.release();
    }
    const reached = await this.#reach(migration, guest, held);
    this.#clock.end('reach');
    let twice: string | null = null;
    let took = true;
    const release = (): void => held?.release();
    if (reached) {
      this.#tell(nameOfCell(cell));
      if (cell.fault === 'duplicate') twice = await this.#repeat(guest, migration, sayTwice);
      else if (cell.fault !== 'late') {
        took = await hurt({ plant: this.#plant, vm, ...cell, release });
      }
    }
    release();
    const faultEndMs = performance.now();
    if (held === null) {
      void within(commandMigration(client, migration, {
        kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 }), 10_000);
    }
    return { migration, reached, faultEndMs, twice, took };
  }

  async #repeat(
    { vm }: CampaignGuest, migration: MigrationId, say: typeof sayTwice,
  ): Promise<string | null> {
    return await this.#plant.asControl((ledger) => say(ledger, {
      vm, migration, epoch: this.#epoch, target: this.#plant.target.name }));
  }

  async #reach(
    migration: MigrationId, guest: CampaignGuest, held: ArmedPoint | null,
  ): Promise<boolean> {
    if (held !== null) return await within(held.reached, reachMsMax) === true;
    const { client } = this.#plant;
    const sends = await until(async () => {
      const view = await within(viewMigration(client, migration), 5_000);
      const { phase, bytesOnWire = 0 } = view?.status.progress ?? {};
      return phase === 'memory' && bytesOnWire >= mib ? true : null;
    }, reachMsMax);
    if (sends === null || this.#cell?.phase === 'memory') return sends === true;
    await commandMigration(client, migration, { kind: 'post-copy-now' });
    return await until(async () => {
      const entry = await this.#plant.entry(guest.vm);
      const hasStarted = entry?.owner === this.#plant.target.name
        && entry.lastStarted === entry.epoch;
      return hasStarted && (entry.ready?.missingPageCount ?? 0) > 0 ? true : null;
    }, reachMsMax) === true;
  }

  /** Checks every page of a guest that goes on, and what was acknowledged to us of any. */
  async #look(
    { outside }: CampaignGuest, before: WitnessStatus, now: WitnessStatus | null,
  ): Promise<GuestLook> {
    if (now === null) return { selfCheckFailures: 0, counterWentBack: false, lostWrites: 0 };
    await outside.stopWriting();
    if (now.bootId !== before.bootId) {
      // The witness of a booting guest answers before its Redis does.
      const anew = await until(() => within(outside.readBackAnew(), readMsMax), readMsMax);
      return {
        selfCheckFailures: now.selfCheckFailures, counterWentBack: false,
        lostWrites: anew?.lostWrites ?? Number.NaN,
      };
    }
    await within(outside.witness({ op: 'stop' }), 10_000);
    const after = await within(outside.witness({ op: 'verify' }), 40_000);
    const readBack = await within(outside.readBack(), readMsMax);
    return {
      selfCheckFailures: after?.selfCheckFailures ?? now.selfCheckFailures,
      counterWentBack: (after ?? now).counter <= before.counter,
      lostWrites: readBack?.lostWrites ?? Number.NaN,
    };
  }
}
