/**
 * The target's end of the check that memory arrived exactly: waits for both comparisons, has wrong
 * pages repaired while the VM stands, and says what came of it. Damage is made durable before the
 * VM is stopped, so that no runner that starts anew lets it go on by mistake.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { plainReport } from '../../../contracts/exactness.ts';
import type { ExactnessMode, ExactnessReport } from '../../../contracts/exactness.ts';
import { CodedError } from '../../../contracts/failures.ts';
import { timing } from '../../../contracts/limits.ts';
import type { CheckedMemory, TargetSession } from '../../data-plane/sessions.ts';
import type { TargetVmm, VmGates } from './ports.ts';

/** What the check of one arrival needs. */
export interface ExactnessCheck {
  readonly mode: ExactnessMode;
  /** Epoch under which the VM runs here. */
  readonly epoch: number;
  readonly session: Pick<TargetSession, 'beginCheck' | 'waitChecked' | 'repair' | 'endCheck'>;
  readonly vmm: Pick<TargetVmm, 'pause' | 'goOn'>;
  readonly gates: Pick<VmGates, 'bindLease'>;
  /** Makes it durable that this VM stands damaged; null takes it back. */
  readonly noteDamage: (report: ExactnessReport | null) => Promise<void>;
  readonly log: Logger;
  /** Resolves when the source's runner is not heard of any more. */
  readonly sourceGone: Promise<unknown>;
  readonly msMax?: number;
  /** What a source that is gone still has to come back with its part, ms. */
  readonly goneMsMax?: number;
  /** Before it begins: the guest warms up. */
  readonly afterMs?: number;
}

/** A cut link is not a dead source: it opens its lane again for a while, ms. */
const sourceGoneMsMax = 10_000;

const pagesText = (count: number): string => `${count} page${count === 1 ? '' : 's'}`;

/**
 * Runs once the VM runs here with every page; the tracking of its writes is off when it resolves.
 * Never rejects: what kept the check from its end is part of the report.
 */
export async function checkExactness(check: ExactnessCheck): Promise<ExactnessReport> {
  const { mode, session, log } = check;
  if (mode === 'off') return plainReport('off', '');
  try {
    const report = await compareAndRepair(check);
    log[report.kind === 'exact' ? 'info' : 'error']({ exactness: report }, 'memory was compared');
    return report;
  } catch (error) {
    const detail = error instanceof CodedError ? error.detail : String(error);
    log.error({ error: String(error) }, 'the check of the memory did not end');
    return plainReport('unverified', detail);
  } finally {
    await session.endCheck().catch(() => undefined);
  }
}

async function compareAndRepair(check: ExactnessCheck): Promise<ExactnessReport> {
  const { session, log, msMax = timing.exactnessCheckMsMax, goneMsMax = sourceGoneMsMax } = check;
  if (check.afterMs !== undefined && check.afterMs > 0) await sleep(check.afterMs);
  session.beginCheck();
  const patience = new AbortController();
  const after = (ms: number, why: string): Promise<string> =>
    sleep(ms, why, { signal: patience.signal }).catch(() => why);
  const checked = await Promise.race([
    session.waitChecked(),
    after(msMax, `the check did not end in ${msMax} ms`),
    check.sourceGone.then(() => after(goneMsMax, 'the source went away before it had compared')),
  ]).finally(() => patience.abort());
  if (typeof checked === 'string') return plainReport('unverified', checked);
  if (checked.wrongPageCount === 0) return reportOf(checked, { repaired: 0, damaged: 0 });
  const { wrongPageCount } = checked;
  log.error({ wrongPageCount }, 'wrong pages: the VM stands for the repair');
  const unrepaired = reportOf(checked, { repaired: 0, damaged: checked.wrongPageCount });
  await check.noteDamage(unrepaired);
  return repairStanding(check, checked).catch((error: unknown) => {
    log.error({ error: String(error) }, 'the repair failed');
    return unrepaired;
  });
}

async function repairStanding(
  check: ExactnessCheck, checked: CheckedMemory,
): Promise<ExactnessReport> {
  const { session } = check;
  await check.vmm.pause();
  const repair = await session.repair();
  const counts = { repaired: repair.repairedPageCount, damaged: repair.writtenPageCount };
  const report = reportOf(checked, counts);
  if (report.kind === 'damaged') {
    await check.noteDamage(report);
    return report;
  }
  await check.gates.bindLease(check.epoch);
  await check.vmm.goOn();
  await check.noteDamage(null);
  return report;
}

function reportOf(
  checked: CheckedMemory, { repaired, damaged }: { repaired: number; damaged: number },
): ExactnessReport {
  const { source, target, writtenPageCount, wrongPageCount } = checked;
  const resent = wrongPageCount === 0 ? source.wrongPageCount : 0;
  const kind = damaged > 0 ? 'damaged' : repaired > 0 ? 'repaired' : 'exact';
  const detail = damaged > 0
    ? `${pagesText(damaged)} of memory arrived wrong and were written before that was found`
    : repaired > 0 ? `${pagesText(repaired)} arrived wrong and were put right in place`
      : resent > 0 ? `${pagesText(resent)} that tracking missed were sent again before the start`
        : '';
  return {
    kind, detail, wrongPageCount, repairedPageCount: repaired, damagedPageCount: damaged,
    writtenPageCount, source, target,
  };
}
