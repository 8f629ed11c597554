/**
 * What became of a VM between its start here by a move and the question whether it is whole.
 * Decides by the ledger first, then by whether its VMM lives; changes nothing.
 */
import { plainReport } from '../../contracts/exactness.ts';
import { CodedError, failureReport } from '../../contracts/failures.ts';
import type { FailureCode } from '../../contracts/failures.ts';
import type { HostName } from '../../contracts/identity.ts';
import type { HostActivities, StepInput } from '../../contracts/migration.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { HostContext } from './host-context.ts';
import { readEntry } from './move/ledger-steps.ts';

type Answer = Awaited<ReturnType<HostActivities['verifyTarget']>>;

/** `undecided`: its VMM is gone, and nobody has said yet whether the VM starts again. */
export type Fate = FailureCode | 'runs' | 'undecided';

/** Of the VM of a move that has started on `host`. Pure. */
export function fateOf(
  { entry, host, epoch, hasVmm }: {
    readonly entry: VmEntry; readonly host: HostName;
    /** Before the move's Commit. */
    readonly epoch: number;
    readonly hasVmm: boolean;
  },
): Fate {
  const isDeclined = entry.phase === 'unsettled' && entry.lastStarted < entry.epoch;
  if (entry.owner !== host || isDeclined) return 'migration/taken-back';
  if (entry.epoch > epoch + 1) return 'vm/memory-lost';
  if (hasVmm) return 'runs';
  return entry.desired === 'stopped' ? 'vm/stopped-itself' : 'undecided';
}

/**
 * The target's answer about a VM that does not run as its move started it; null for one that does.
 * Failure: migration/not-here while that is undecided.
 */
export async function sinceStart(
  { world, host, hypervisor }: Pick<HostContext, 'world' | 'host' | 'hypervisor'>,
  { vm, migration, epoch }: StepInput,
): Promise<Answer | null> {
  const entry = await readEntry(world, vm);
  if (entry === null || entry.migration !== migration) return null;
  const fate = fateOf({ entry, host, epoch, hasVmm: await hypervisor.vmmPid(vm) !== null });
  if (fate === 'runs') return null;
  if (fate === 'undecided') {
    throw new CodedError('migration/not-here', `the VMM of ${vm} is gone: it starts again, or not`);
  }
  return {
    digest: entry.ready?.digest ?? '', since: failureReport(fate, entry.cause),
    exactness: plainReport('unverified', 'the VM does not run any more as the move started it'),
  };
}
