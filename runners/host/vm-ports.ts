/** The real VMMs behind the ports of a move (move/ports.ts): adapters, no decisions. */
import { CodedError } from '../../contracts/failures.ts';
import type { Incarnation, VmName } from '../../contracts/identity.ts';
import { calmVmm, type MoveWork, raiseSession, raiseVmm } from '../cpu-priority.ts';
import { closeExports } from '../hypervisor/disk-mirror.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { VcpuStamp, VmMonitor } from '../hypervisor/vm-monitor.ts';
import { holdBeforeResume } from './hold-before-resume.ts';
import type { SourceVmm, Stamped, TargetVmm } from './move/ports.ts';

export interface VmmPlace {
  readonly hypervisor: Hypervisor;
  readonly monitor: VmMonitor;
  readonly vm: VmName;
  readonly incarnation: Incarnation;
  readonly vmmPid: number;
}
/** The incoming one, which a lab may hold before its first instruction (hold-before-resume.ts). */
export interface TargetPlace extends VmmPlace {
  readonly holdDirectory: string | null;
  readonly hasDisks: boolean;
}

/** Loading waits for the source's whole pre-copy, which the move's own deadline bounds, ms. */
const loadTimeoutMs = 2 ** 31 - 1;

const stamped = ({ vmmStampUs }: VcpuStamp): Stamped => ({ eventMs: vmmStampUs / 1000 });

/** Resolves when the VMM is gone or its guest shut down: vmm/gone or vm/stopped-itself. */
function endOf(monitor: VmMonitor): Promise<CodedError> {
  const end = Promise.withResolvers<CodedError>();
  const stop = monitor.qmp.onEvent((event) => {
    if (event.name !== 'SHUTDOWN') return;
    const reason = String(event.data['reason'] ?? 'no reason given');
    end.resolve(event.data['guest'] === false
      ? new CodedError('vmm/gone', `it was told to end (${reason})`)
      : new CodedError('vm/stopped-itself', `the guest shut down (${reason})`));
  });
  void monitor.qmp.gone.then(end.resolve);
  void end.promise.then(stop);
  return end.promise;
}

/** What one move has raised this process's session for; nothing is raised again once it is calm. */
function moveCpu(): { readonly raise: (work: MoveWork) => void; readonly calm: () => void } {
  const raised = new Map<MoveWork, { readonly over: () => void }>();
  let isOver = false;
  return {
    raise: (work) => {
      if (!isOver && !raised.has(work)) raised.set(work, raiseSession(work));
    },
    calm: () => {
      isOver = true;
      for (const level of raised.values()) level.over();
    },
  };
}

/** The running VMM at the source. */
export function sourceVmm(place: VmmPlace): SourceVmm {
  const cpu = moveCpu();
  return {
    incarnation: place.incarnation,
    ended: endOf(place.monitor),
    stop: async () => {
      cpu.raise('blackout');
      await raiseVmm(place.vmmPid, { session: false });
      const stamp = await place.monitor.stopVcpus();
      // The blackout waits for this VMM now, and none of its vCPUs runs.
      void raiseVmm(place.vmmPid, { session: true });
      return stamped(stamp);
    },
    sendDeviceState: async (socketPath) => {
      await place.monitor.migrateDeviceState(socketPath);
    },
    resume: async () => {
      const stamp = await place.monitor.cont();
      await calmVmm(place.vmmPid);
      return stamped(stamp);
    },
    copying: () => cpu.raise('copy'),
    moveOver: () => {
      cpu.calm();
      // Its end, with all of its memory, is in no hurry either.
      void calmVmm(place.vmmPid);
    },
    stamp: (epoch) => place.hypervisor.stampImage({ vm: place.vm, epoch }),
  };
}

/** The incoming VMM at the target. */
export function targetVmm(place: TargetPlace): TargetVmm {
  const { hypervisor, monitor, vm, holdDirectory } = place;
  let resumed = false;
  const cpu = moveCpu();
  monitor.qmp.onEvent((event) => {
    if (event.name === 'RESUME') resumed = true;
  });
  return {
    incarnation: place.incarnation,
    ended: endOf(monitor),
    copying: () => cpu.raise('copy'),
    loaded: async () => {
      await monitor.waitIncomingCompleted(loadTimeoutMs);
      cpu.raise('blackout');
    },
    // Without disks nothing was exported: a question would only lengthen the blackout.
    closeExports: async () => {
      if (place.hasDisks) await closeExports(monitor.qmp);
    },
    resume: async () => {
      await holdBeforeResume(holdDirectory, vm);
      const stamp = await monitor.cont();
      void calmVmm(place.vmmPid);
      cpu.calm();
      return stamped(stamp);
    },
    pause: async () => {
      await monitor.stopVcpus();
    },
    goOn: async () => {
      await monitor.cont();
    },
    announce: () => monitor.announceSelf(),
    stamp: (epoch) => hypervisor.stampImage({ vm, epoch }),
    kill: async () => {
      cpu.calm();
      try {
        await hypervisor.killVm(vm);
        return !resumed;
      } catch (error) {
        // Without the proof that it is reaped nothing may be declined.
        if (error instanceof CodedError && error.code === 'vmm/timeout') return false;
        throw error;
      }
    },
  };
}
