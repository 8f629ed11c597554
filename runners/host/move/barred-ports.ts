/**
 * The ports of a move with fault points around each step (contracts/fault-points.ts). Changes
 * nothing of what the steps do; the hand-over itself knows no fault point.
 */
import type { Ledger, LedgerEventKind } from '../../../contracts/ownership.ts';
import type { FaultStep } from '../../../contracts/fault-points.ts';
import type { HostOperations } from '../../../activities/host-operations.ts';
import { barredLedger } from '../../barred-ledger.ts';
import type { Barrier, FaultPoints } from '../../fault-points.ts';
import type { MoveNote, MoveWorld, SourceVmm, TargetVmm, VmGates } from './ports.ts';

type LedgerSteps = Readonly<Partial<Record<LedgerEventKind, FaultStep>>>;

const sourceLedgerSteps: LedgerSteps = {
  quiesced: 'source/quiesced', abort: 'source/abort', revert: 'source/revert',
  started: 'source/started',
};
const targetLedgerSteps: LedgerSteps = {
  commit: 'target/commit', started: 'target/started', declined: 'target/declined',
};

const noteStep = ({ side, stage }: MoveNote): FaultStep | null => {
  if (side !== 'source' || stage === 'open') return null;
  return stage === 'quiescing' ? 'source/note-quiescing' : 'source/note-handed-over';
};

const barredWorld = (world: MoveWorld, at: Barrier, ledger: Ledger): MoveWorld => ({
  ...world,
  ledger,
  note: async (vm, note) => {
    const step = note === null ? null : noteStep(note);
    await (step === null ? world.note(vm, note) : at(step, () => world.note(vm, note)));
  },
});

/** Ports of one move away from here. */
export function barredSource(
  points: FaultPoints, vm: string,
  ports: { readonly world: MoveWorld; readonly vmm: SourceVmm; readonly gates: VmGates },
): { readonly world: MoveWorld; readonly vmm: SourceVmm; readonly gates: VmGates } {
  const at = points.of(vm);
  const { world, vmm, gates } = ports;
  return {
    world: barredWorld(world, at, barredLedger(world.ledger, points, sourceLedgerSteps)),
    vmm: {
      ...vmm,
      stop: () => at('source/stop', () => vmm.stop()),
      sendDeviceState: (path) => at('source/device-state', () => vmm.sendDeviceState(path)),
      resume: () => at('source/cont', () => vmm.resume()),
    },
    gates: {
      ...gates,
      raise: (epoch) => at('source/gate', () => gates.raise(epoch)),
      closeNics: () => at('source/close-nics', () => gates.closeNics()),
    },
  };
}

/** Ports of one move towards here. */
export function barredTarget(
  points: FaultPoints, vm: string,
  ports: { readonly world: MoveWorld; readonly vmm: TargetVmm; readonly gates: VmGates },
): { readonly world: MoveWorld; readonly vmm: TargetVmm; readonly gates: VmGates } {
  const at = points.of(vm);
  const { world, vmm, gates } = ports;
  return {
    world: barredWorld(world, at, barredLedger(world.ledger, points, targetLedgerSteps)),
    vmm: {
      ...vmm,
      loaded: () => at('target/loaded', () => vmm.loaded()),
      closeExports: () => at('target/close-exports', () => vmm.closeExports()),
      resume: () => at('target/cont', () => vmm.resume()),
      announce: () => at('target/announce', () => vmm.announce()),
      stamp: (epoch) => at('target/stamp', () => vmm.stamp(epoch)),
      kill: () => at('target/kill', () => vmm.kill()),
    },
    gates: {
      ...gates,
      raise: (epoch) => at('target/gate', () => gates.raise(epoch)),
      bindLease: (epoch) => at('target/lease', () => gates.bindLease(epoch)),
      openNics: () => at('target/open-nics', () => gates.openNics()),
    },
  };
}

/** The steps of a host that Temporal calls. */
export function barredOperations(operations: HostOperations, points: FaultPoints): HostOperations {
  return {
    ...operations,
    checkTarget: (input, call) =>
      points.of(input.vm)('target/check', () => operations.checkTarget(input, call)),
    prepareTarget: (input, call) =>
      points.of(input.vm)('target/prepare', () => operations.prepareTarget(input, call)),
    copyDisk: (input, call) =>
      points.of(input.vm)('source/copy-disk', () => operations.copyDisk(input, call)),
    copyMemoryAndSwitchOver: (input, call) => points.of(input.vm)(
      'source/copy-memory', () => operations.copyMemoryAndSwitchOver(input, call)),
    verifyTarget: (input, call) =>
      points.of(input.vm)('target/verify', () => operations.verifyTarget(input, call)),
    releaseSource: (input, call) =>
      points.of(input.vm)('source/release', () => operations.releaseSource(input, call)),
    abortSource: (input, call) =>
      points.of(input.vm)('source/undo', () => operations.abortSource(input, call)),
    discardTarget: (input, call) =>
      points.of(input.vm)('target/discard', () => operations.discardTarget(input, call)),
  };
}
