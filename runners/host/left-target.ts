/** What a runner that died has left of a target it had prepared: a VMM that waits, half full. */
import { CodedError } from '../../contracts/failures.ts';
import type { Incarnation, VmName } from '../../contracts/identity.ts';
import type { HostActivities } from '../../contracts/migration.ts';
import { closeExports } from '../hypervisor/disk-mirror.ts';
import type { VmMonitor } from '../hypervisor/vm-monitor.ts';
import type { HostContext } from './host-context.ts';

/** Whether a runner before this one has prepared this very move, and its VMM still waits. */
export async function isLeft(
  { readNote, hypervisor }: Pick<HostContext, 'readNote' | 'hypervisor'>,
  { vm, migration, epoch, running }: Parameters<HostActivities['prepareTarget']>[0],
): Promise<boolean> {
  // The ways to shared volumes are a runner's own.
  if (running.disks.some(({ shared }) => shared !== undefined)) return false;
  const note = await readNote(vm);
  if (note?.side !== 'target' || note.stage !== 'open' || note.migration !== migration
    || note.epoch !== epoch) return false;
  return (await hypervisor.look(vm)).runState === 'incoming';
}

/** The VMM, which nobody writes to any more; its exports are to be opened anew. */
export async function adoptLeft(
  { hypervisor, log }: Pick<HostContext, 'hypervisor' | 'log'>, vm: VmName,
): Promise<{ readonly monitor: VmMonitor; readonly incarnation: Incarnation }> {
  const [monitor, { incarnation }] = await Promise.all([
    hypervisor.monitor(vm), hypervisor.identity(vm),
  ]);
  if (incarnation === null) throw new CodedError('vm/not-running', `${vm} has no incarnation`);
  await closeExports(monitor.qmp);
  log.warn({ vm, incarnation }, 'the prepared VMM is adopted with what it has received');
  return { monitor, incarnation };
}
