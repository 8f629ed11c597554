/**
 * Waits for the end of a disturbed move, as those outside see it: the service answers, the ledger
 * says who owns the VM, Temporal says how it ended, and nothing is left behind.
 */
import type { MigrationId } from '../../contracts/identity.ts';
import type { MigrationOutcome } from '../../contracts/migration.ts';
import { migrationOutcome } from '../../payloads/migration-client.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { WitnessStatus } from '../client/witness-line.ts';
import type { CampaignGuest, Plant } from './plant.ts';
import { until, within } from './waiting.ts';

/** From the fault's end until the move has to be over and the guest to answer, ms. */
export const recoveryMsMax = 90_000;
/** A sweep of a runner looks every 3 s; what nobody attends any more ends after 30 s. */
const cleanMsMax = 45_000;
const probeMsMax = 5_000;

/** What came after the fault; times in ms from its end. */
export interface Recovery {
  /** Null: the guest does not answer in the end. */
  readonly status: WitnessStatus | null;
  readonly recoveredMs: number | null;
  readonly endedMs: number | null;
  readonly owner: string | null;
  readonly told: string;
  /** Where Temporal's words differ from the ledger's; null: nowhere. */
  readonly contradiction: string | null;
  readonly orphans: readonly string[];
}

interface Order {
  readonly plant: Plant;
  readonly guest: CampaignGuest;
  readonly migration: MigrationId;
  readonly faultEndMs: number;
}

const wordsOf = (outcome: MigrationOutcome | null): string => {
  if (outcome === null) return 'still open';
  if (outcome.kind !== 'failed') return outcome.kind;
  const undone = outcome.compensationFailures.map(({ code }) => code).join(', ');
  return `failed: ${outcome.failure.code}${undone === '' ? '' : `, not undone: ${undone}`}`;
};

/** Asked again while Temporal is away. */
async function outcomeOf({ plant, migration }: Order, msMax: number,
): Promise<MigrationOutcome | null> {
  const end = performance.now() + msMax;
  return await until(
    () => within(migrationOutcome(plant.client, migration), end - performance.now()), msMax);
}

/** Follows the move to its end, at most 90 s from the fault's end. */
export async function recover(order: Order): Promise<Recovery> {
  const { plant, guest, faultEndMs } = order;
  const leftMs = (): number => Math.max(0, faultEndMs + recoveryMsMax - performance.now());
  const sinceMs = (): number => Math.round(performance.now() - faultEndMs);
  const probe = (): Promise<WitnessStatus | null> => within(guest.outside.probe(), probeMsMax);
  const ended = async (): Promise<[MigrationOutcome | null, VmEntry | null, number | null]> => {
    const outcome = await outcomeOf(order, leftMs());
    // Afterwards: before the move is reserved the entry looks as if it were over.
    const entry = await until(async () => {
      const seen = await plant.entry(guest.vm);
      return seen?.phase === 'owned' && seen.lastStarted === seen.epoch ? seen : null;
    }, leftMs());
    return [outcome, entry, outcome === null || entry === null ? null : sinceMs()];
  };
  const [recoveredMs, [outcome, entry, endedMs]] = await Promise.all([
    until(probe, leftMs()).then((status) => (status === null ? null : sinceMs())), ended(),
  ]);
  // It answered once; what counts is that it still does.
  const status = await until(probe, Math.min(leftMs(), 15_000));
  const elsewhere = plant.lab.plan.hosts.filter(({ name }) => name !== entry?.owner);
  let orphans: string[] = [];
  await until(async () => {
    orphans = (await Promise.all(
      elsewhere.map((host) => plant.remainsOn(host, guest.vm)))).flat();
    return orphans.length === 0 ? true : null;
  }, entry === null ? 0 : cleanMsMax);
  return {
    status, recoveredMs, endedMs, owner: entry?.owner ?? null, told: wordsOf(outcome),
    orphans: entry === null ? [] : orphans,
    contradiction: contradictionOf(outcome, entry?.owner ?? null),
  };
}

/** Where Temporal says that the VM runs, if the ledger says otherwise. Pure. */
export function contradictionOf(
  outcome: MigrationOutcome | null, owner: string | null,
): string | null {
  if (outcome === null || owner === null) return null;
  const told = outcome.kind === 'completed' ? outcome.target
    : outcome.kind === 'failed' ? outcome.runsOn : outcome.source;
  return told === null || told === owner ? null
    : `Temporal says ${outcome.kind}, on ${told}; the ledger says ${owner}`;
}
