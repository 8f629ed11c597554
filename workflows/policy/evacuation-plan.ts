/**
 * What an evacuation does next: pure. Rows of VMs from a survey of the ledger, the next wave of
 * moves, what the end of a move means for its VM, and each move's part of the bandwidth.
 */
import type {
  EvacuationPolicy, EvacuationRow, HostSurvey, SurveyedVm,
} from '../../contracts/evacuation.ts';
import { failureReport } from '../../contracts/failures.ts';
import type { FailureCode, FailureReport } from '../../contracts/failures.ts';
import type { MigrationOutcome } from '../../contracts/migration.ts';
import { hostWith, placeVms } from '../../contracts/placement.ts';
import type { PlannedMove, PlacementHost } from '../../contracts/placement.ts';

/** A failure that may pass is tried again so often in all, after 5 s, 10 s, 20 s, 40 s. */
const triesMax = 5;
const firstRetryMs = 5_000;
/** Moves planned ahead from one survey, as multiples of the concurrency: rooms grow stale. */
const waveFactor = 4;

/** These are reasons of the VM or of the request: no other host and no later try changes them. */
const ofTheVm: readonly FailureCode[] = [
  'vm/not-running', 'vm/stopped-itself', 'preflight/layout', 'preflight/local-disk',
  'preflight/address-taken', 'migration/not-converging', 'migration/deadline', 'migration/digest',
  'input/invalid',
];
/** Somebody else has it in hand, or had: the next survey tells. */
const ofOthers: readonly FailureCode[] = ['migration/open', 'migration/same-host', 'vm/unknown'];
/** Skips that the next survey may lift. */
const reconsidered: readonly FailureCode[] = ['evacuation/no-target', 'vm/not-running'];

const isOfTheTarget = (code: FailureCode): boolean =>
  code.startsWith('preflight/') || code === 'host/cordoned' || code === 'host/unknown'
  || code === 'host/program-missing';

const fresh = ({ vm, memoryBytes, diskBytes }: SurveyedVm): EvacuationRow => ({
  vm, memoryBytes, diskBytes, state: 'waiting', target: null, migration: null, attempts: 0,
  failedCount: 0, startedAtMs: null, endedAtMs: null, retryAtMs: null, failure: null, refusals: [],
});

function seen(row: EvacuationRow, vm: SurveyedVm): EvacuationRow {
  if (row.state === 'moving') return row;
  if (vm.migration !== null) return { ...row, state: 'busy' };
  if (vm.desired === 'stopped') {
    const failure = failureReport('vm/not-running', `${vm.vm} is stopped; its disks are here`);
    return { ...row, state: 'skipped', failure };
  }
  // It came back: it is as new, but for the ids that its tries have used.
  if (row.state === 'moved' || row.state === 'left') {
    return { ...fresh(vm), attempts: row.attempts };
  }
  const stays = row.state === 'skipped' && row.failure !== null
    && !reconsidered.includes(row.failure.code);
  return stays ? row : { ...row, state: 'waiting' };
}

/** Rows after a survey: new VMs come in, those that are gone without us have `left`. */
export function rowsAfterSurvey(
  rows: readonly EvacuationRow[], survey: HostSurvey,
): EvacuationRow[] {
  const there = new Map(survey.vms.map((vm) => [vm.vm, vm]));
  const known = rows.map((row): EvacuationRow => {
    const vm = there.get(row.vm);
    if (vm !== undefined) return seen(row, vm);
    // One that stands damaged at its target has gone, but not well: it stays in the report.
    const isTold = row.state === 'skipped' && row.failure?.code === 'migration/damaged';
    return row.state === 'moving' || row.state === 'moved' || isTold ? row
      : { ...row, state: 'left' };
  });
  const added = survey.vms.filter(({ vm }) => !rows.some((row) => row.vm === vm))
    .map((vm) => seen(fresh(vm), vm));
  return [...known, ...added];
}

/** In the order in which moves begin: the named first, then by the policy, then by name. */
export function inOrder(
  rows: readonly EvacuationRow[], { order, first }: Pick<EvacuationPolicy, 'order' | 'first'>,
): EvacuationRow[] {
  const rank = ({ vm }: EvacuationRow): number =>
    first.includes(vm) ? first.indexOf(vm) : first.length;
  const size = ({ memoryBytes, diskBytes }: EvacuationRow): number => memoryBytes + diskBytes;
  const sign = order === 'name' ? 0 : order === 'large-first' ? -1 : 1;
  return rows.toSorted((a, b) =>
    rank(a) - rank(b) || sign * (size(a) - size(b)) || (a.vm < b.vm ? -1 : 1));
}

/** The hosts less what moves of ours are on their way and not in the ledger yet. */
function hostsLessMoving(rows: readonly EvacuationRow[], survey: HostSurvey): PlacementHost[] {
  const unseen = rows.filter(({ vm, state }) =>
    state === 'moving' && survey.vms.some((one) => one.vm === vm && one.migration === null));
  return survey.hosts.map((host) => unseen
    .filter(({ target }) => target === host.host)
    .reduce((left, row) => {
      const vm = survey.vms.find((one) => one.vm === row.vm);
      return vm === undefined ? left : hostWith(left, vm);
    }, host));
}

export interface Wave {
  readonly moves: readonly PlannedMove[];
  /** With the skips of VMs that no host takes. */
  readonly rows: readonly EvacuationRow[];
}

/** The next moves, from rows that are up to date with the survey. */
export function planWave(wish: {
  readonly rows: readonly EvacuationRow[]; readonly survey: HostSurvey;
  readonly policy: EvacuationPolicy; readonly nowMs: number;
}): Wave {
  const { rows, survey, policy, nowMs } = wish;
  const due = inOrder(rows.filter(({ state, retryAtMs }) =>
    state === 'waiting' && (retryAtMs ?? 0) <= nowMs), policy)
    .slice(0, policy.concurrency * waveFactor);
  const vms = due.flatMap(({ vm }) => survey.vms.filter((one) => one.vm === vm));
  const { moves, unplaced } = placeVms({
    vms, hosts: hostsLessMoving(rows, survey), targets: policy.targets,
    excluded: (vm) => rows.find((row) => row.vm === vm)?.refusals ?? [],
  });
  const skips = new Map(unplaced.map(({ vm, refusals }) => [vm, failureReport(
    'evacuation/no-target', refusals.length === 0 ? 'there is no other host'
      : refusals.map(({ host, code, detail }) => `${host}: ${code} (${detail})`).join('; '),
  )]));
  return {
    moves,
    rows: rows.map((row): EvacuationRow => {
      const failure = skips.get(row.vm);
      return failure === undefined ? row : { ...row, state: 'skipped', failure };
    }),
  };
}

/** The row after a try that did not move it. */
function afterFailure(row: EvacuationRow, failure: FailureReport, nowMs: number): EvacuationRow {
  const ended = { ...row, endedAtMs: nowMs, failure };
  const { code, detail } = failure;
  if (ofOthers.includes(code)) return { ...ended, state: 'busy' };
  if (ofTheVm.includes(code)) return { ...ended, state: 'skipped' };
  if (isOfTheTarget(code) && row.target !== null) {
    const refusals = [...row.refusals, { host: row.target, code, detail }];
    return { ...ended, state: 'waiting', refusals };
  }
  const failedCount = row.failedCount + 1;
  return failedCount >= triesMax ? { ...ended, failedCount, state: 'skipped' } : {
    ...ended, failedCount, state: 'waiting',
    retryAtMs: nowMs + firstRetryMs * 2 ** (failedCount - 1),
  };
}

/** What a move's end means for its VM; a cancel of somebody else is a wish that it stays. */
export function rowAfterMove(
  row: EvacuationRow, outcome: MigrationOutcome | FailureReport, nowMs: number,
): EvacuationRow {
  if (!('kind' in outcome)) return afterFailure(row, outcome, nowMs);
  if (outcome.kind === 'completed') {
    return { ...row, state: 'moved', endedAtMs: nowMs, failure: null };
  }
  if (outcome.kind === 'failed' && outcome.failure.code === 'vm/memory-lost') {
    // Its host died under it there: it has left this one all the same.
    return { ...row, state: 'moved', endedAtMs: nowMs, failure: outcome.failure };
  }
  if (outcome.kind === 'damaged') {
    const { detail } = outcome.exactness;
    const failure = failureReport('migration/damaged', detail);
    return { ...row, state: 'skipped', endedAtMs: nowMs, failure };
  }
  return outcome.kind === 'failed' ? afterFailure(row, outcome.failure, nowMs) : {
    ...row, state: 'skipped', endedAtMs: nowMs,
    failure: failureReport('migration/cancelled', `by ${outcome.by}`),
  };
}

/** Each running move's part of the bandwidth: at the end fewer moves share it. 0: no limit. */
export function bandwidthPart(
  policy: Pick<EvacuationPolicy, 'bandwidthBytesPerSecond' | 'concurrency'>,
  rows: readonly EvacuationRow[],
): number {
  const { bandwidthBytesPerSecond, concurrency } = policy;
  if (bandwidthBytesPerSecond === 0) return 0;
  const openCount = rows.filter(({ state }) => state === 'waiting' || state === 'moving').length;
  const sharers = Math.max(1, Math.min(concurrency, openCount));
  return Math.max(1, Math.floor(bandwidthBytesPerSecond / sharers));
}
