/**
 * Fault points: named barriers before and after each step of a move, at which a lab can hold a
 * process exactly there and then do it harm (docs/guides/faults.md). The closed list, and the words
 * that arm them. Production knows no way to arm one.
 */
import { z } from 'zod';
import { isVmName } from './identity.ts';

/** Steps of a move that have a point before and one after them, with what the step is. */
export const faultSteps = {
  'control/prepare': 'ledger entry Prepare, by the control worker',
  'control/settle': 'ledger entry Settle, by the control worker',
  'control/abort': 'ledger entry Abort, by the control worker',
  'control/revert': 'ledger entry Revert, by the control worker',

  'target/check': 'step: preflight at the target',
  'target/prepare': 'step: target VMM, exports and listeners made',
  'source/copy-disk': 'step: link, lanes, disks in sync',
  'source/copy-memory': 'step: rounds and the whole hand-over, at the source',
  'target/verify': 'step: the target says that it is whole',
  'source/release': 'step: image and files of the source go',
  'source/undo': 'step: compensation at the source',
  'target/discard': 'step: compensation at the target',

  'source/note-quiescing': 'durable note that the hand-over begins',
  'source/stop': 'QMP stop',
  'source/device-state': 'QMP migrate: device state',
  'source/quiesced': 'ledger entry Quiesced',
  'source/close-nics': 'NIC gate shut at the source',
  'source/note-handed-over': 'durable note that the VM is handed over',

  'target/loaded': 'QMP: device state loaded',
  'target/close-exports': 'QMP nbd-server-stop',
  'target/commit': 'ledger entries Ready and Commit, one request',
  'target/gate': 'epoch gate raised at the target',
  'target/started': 'ledger entry Started, by the target',
  'target/stamp': 'image stamped with the new epoch',
  'target/lease': 'first lease bound',
  'target/cont': 'QMP cont at the target',
  'target/open-nics': 'NIC gate opened',
  'target/announce': 'QMP announce-self',

  'target/kill': 'target VMM killed and reaped after a failure',
  'target/declined': 'ledger entry Declined',
  'source/abort': 'ledger entry Abort, by the source',
  'source/revert': 'ledger entry Revert, by the source',
  'source/gate': 'epoch gate raised at the source, VM taken back',
  'source/started': 'ledger entry Started, VM taken back',
  'source/cont': 'QMP cont at the source, VM taken back',
} as const satisfies Readonly<Record<string, string>>;

export type FaultStep = keyof typeof faultSteps;
export type FaultPoint = `${FaultStep}/${'before' | 'after'}`;

/** Every point, in the order of the table. */
export const faultPoints: readonly FaultPoint[] = (Object.keys(faultSteps) as FaultStep[])
  .flatMap((step): FaultPoint[] => [`${step}/before`, `${step}/after`]);

const known = new Set<string>(faultPoints);
export const isFaultPoint = (text: string): text is FaultPoint => known.has(text);
/** The step of a point. */
export const stepOfPoint = (point: FaultPoint): FaultStep =>
  point.slice(0, point.lastIndexOf('/')) as FaultStep;

/** Nobody who holds a process and goes away holds it longer than this, ms. */
export const faultHoldMsMax = 120_000;

const version = z.literal(1);
const point = z.string().refine(isFaultPoint, 'a fault point')
  .transform((text): FaultPoint => text);

/** What the holder of a lab certificate may ask. */
export const faultRequest = z.strictObject({
  version,
  /** `arm`: the next process of that VM that comes there waits. `release`: it goes on. */
  op: z.enum(['arm', 'release']),
  point,
  vm: z.string().refine(isVmName, 'a VM name'),
});
export interface FaultRequest {
  readonly version: 1;
  readonly op: 'arm' | 'release';
  readonly point: FaultPoint;
  readonly vm: string;
}

/** What the process says: answers, and that somebody stands at an armed point. */
export const faultNotice = z.strictObject({
  version, kind: z.enum(['armed', 'reached', 'released']), point,
});
export interface FaultNotice {
  readonly version: 1;
  readonly kind: 'armed' | 'reached' | 'released';
  readonly point: FaultPoint;
}
