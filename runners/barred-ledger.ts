/** A ledger whose proposals of a move have fault points around them (contracts/fault-points.ts). */
import type { FaultStep } from '../contracts/fault-points.ts';
import type { Ledger, LedgerEventKind } from '../contracts/ownership.ts';
import type { FaultPoints } from './fault-points.ts';

/** Steps by the event that a proposal ends with, which is the one that decides. */
export const barredLedger = (
  ledger: Ledger, points: FaultPoints,
  steps: Readonly<Partial<Record<LedgerEventKind, FaultStep>>>,
): Ledger => ({
  propose: (events) => {
    const last = events.at(-1);
    const step = last === undefined ? undefined : steps[last.kind];
    if (last === undefined || step === undefined || !('vm' in last)) return ledger.propose(events);
    return points.of(last.vm)(step, () => ledger.propose(events));
  },
  readVm: (vm) => ledger.readVm(vm),
  listVms: () => ledger.listVms(),
  listHosts: () => ledger.listHosts(),
  migrationEnd: (migration) => ledger.migrationEnd(migration),
  watchVm: (vm, signal) => ledger.watchVm(vm, signal),
  close: () => ledger.close(),
});

/** Events of a move that the control worker proposes. */
export const controlLedgerSteps = {
  prepare: 'control/prepare', settle: 'control/settle', abort: 'control/abort',
  revert: 'control/revert',
} as const satisfies Readonly<Partial<Record<LedgerEventKind, FaultStep>>>;
