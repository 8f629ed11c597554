/**
 * Which faults a campaign tries: the cells (phase, victim, fault), why some can't be tried, what a
 * cell may cost the guest by docs/ownership.md, and the order of a seed. Pure.
 */
import { faultPoints, isFaultPoint, stepOfPoint } from '../../contracts/fault-points.ts';
import type { FaultPoint, FaultStep } from '../../contracts/fault-points.ts';

/** Who is hurt. */
export const victims = [
  'control-worker', 'temporal', 'ledger', 'source-runner', 'target-runner', 'source-vmm',
  'target-vmm', 'source-guard', 'target-guard', 'source-host', 'target-host', 'volume-server',
] as const;
export type Victim = (typeof victims)[number];

const cutSeconds = [1, 5, 30, 60] as const;
const cutLinks = ['data', 'temporal', 'ledger'] as const;
export type CutLink = (typeof cutLinks)[number];
export type CutFault = `cut-${CutLink}-${(typeof cutSeconds)[number]}s`;

/** How far clocks are off: the wall clock by an hour; all clocks at twice or half their pace. */
const clockFaults = {
  'clock-step': { wallOffsetMs: 3_600_000, rate: 1 },
  'clock-fast': { wallOffsetMs: 0, rate: 2 }, 'clock-slow': { wallOffsetMs: 0, rate: 0.5 },
} as const;
type ClockFault = keyof typeof clockFaults;

/** What is done to it. `sigstop-20s` is longer than a lease. */
export const faults = [
  'sigkill', 'sigstop-3s', 'sigstop-20s',
  ...cutLinks.flatMap((link) =>
    cutSeconds.map((seconds): CutFault => `cut-${link}-${seconds}s`)),
  'duplicate', 'late', 'disk-full', 'oom',
  ...Object.keys(clockFaults) as ClockFault[],
] as const;
export type Fault = (typeof faults)[number];

/** Link and length of a cut; null for another fault. */
export function cutOf(fault: Fault): { readonly link: CutLink; readonly ms: number } | null {
  const match = /^cut-(data|temporal|ledger)-(\d+)s$/.exec(fault);
  return match === null ? null
    : { link: match[1] as CutLink, ms: Number(match[2]) * 1_000 };
}

/** How long a victim is stopped, ms; null for another fault. */
export const stopMsOf = (fault: Fault): number | null =>
  (fault === 'sigstop-3s' ? 3_000 : fault === 'sigstop-20s' ? 20_000 : null);

/** What a victim's clocks are set to; null for another fault. */
export const clockOf = (fault: Fault): (typeof clockFaults)[ClockFault] | null =>
  (Object.hasOwn(clockFaults, fault) ? clockFaults[fault as ClockFault] : null);

/** Victims whose clocks the lab can set: Temporal is a Go program, and a VMM's are the guest's. */
const hasOwnClock = (victim: Victim): boolean =>
  victim === 'control-worker' || victim === 'ledger' || victim.endsWith('-runner');

/** A moment of a move: a fault point, or while rounds or missing pages are sent. */
export type Phase = FaultPoint | 'memory' | 'post-copy';
export const phases: readonly Phase[] = [...faultPoints, 'memory', 'post-copy'];
export const isPhase = (text: string): text is Phase =>
  text === 'memory' || text === 'post-copy' || isFaultPoint(text);

export interface Cell {
  readonly phase: Phase;
  readonly victim: Victim;
  readonly fault: Fault;
}
export const nameOfCell = ({ phase, victim, fault }: Cell): string =>
  `${victim} ${fault} at ${phase}`;

/** Steps of a move that nothing disturbs, in their order; some of them run beside each other. */
const undisturbed: readonly (FaultStep | 'memory' | 'post-copy')[] = [
  'target/check', 'control/prepare', 'target/prepare', 'source/copy-disk', 'source/copy-memory',
  'memory', 'source/note-quiescing', 'source/stop', 'source/device-state', 'source/quiesced',
  'target/loaded', 'target/close-exports', 'target/commit', 'target/gate', 'target/stamp',
  'target/started', 'target/lease', 'target/cont', 'target/open-nics', 'target/announce',
  'source/close-nics', 'source/note-handed-over', 'post-copy', 'target/verify', 'control/settle',
  'source/release',
];

/** Place of a phase in a move: twice its step, one more after it. Null off the usual way. */
function placeOf(phase: Phase): number | null {
  const whole = phase === 'memory' || phase === 'post-copy';
  const place = undisturbed.indexOf(whole ? phase : stepOfPoint(phase));
  if (place < 0) return null;
  // The step of copying lasts until the hand-over is done.
  if (phase === 'source/copy-memory/after') return 2 * undisturbed.indexOf('post-copy') - 1;
  return 2 * place + (!whole && phase.endsWith('/after') ? 1 : 0);
}
const at = (phase: Phase): number => placeOf(phase) ?? Number.NaN;

/** A first harm that leads a move to a point off the usual way. */
export interface Way {
  readonly point: FaultPoint;
  readonly victim: 'target-vmm';
}

const ways: Readonly<Partial<Record<FaultStep, Way>>> = {
  'target/kill': { point: 'target/cont/before', victim: 'target-vmm' },
  'target/declined': { point: 'target/cont/before', victim: 'target-vmm' },
  'source/revert': { point: 'target/cont/before', victim: 'target-vmm' },
  'source/gate': { point: 'target/cont/before', victim: 'target-vmm' },
  'source/started': { point: 'target/cont/before', victim: 'target-vmm' },
  'source/cont': { point: 'target/cont/before', victim: 'target-vmm' },
  'source/abort': { point: 'target/loaded/before', victim: 'target-vmm' },
  'control/abort': { point: 'source/copy-memory/before', victim: 'target-vmm' },
  'source/undo': { point: 'source/copy-memory/before', victim: 'target-vmm' },
  'target/discard': { point: 'source/copy-memory/before', victim: 'target-vmm' },
};
/** Null for a phase that every move comes to. */
export const wayTo = (phase: Phase): Way | null =>
  (isFaultPoint(phase) ? ways[stepOfPoint(phase)] ?? null : null);

/** Process at whose point a phase is held. */
export const holderOf = (point: FaultPoint): 'source-runner' | 'target-runner' | 'control-worker' =>
  (point.startsWith('source/') ? 'source-runner'
    : point.startsWith('target/') ? 'target-runner' : 'control-worker');

/** What a run's guest has to be like for its cell. */
export interface GuestKind {
  /** `automatic` binds it to its lease. */
  readonly failover: 'none' | 'automatic';
  /** Where its disk is. */
  readonly disk: 'local' | 'shared';
}
export const guestKindOf = (cell: Cell | null): GuestKind => ({
  failover: cell?.fault === 'sigstop-20s' ? 'automatic' : 'none',
  disk: cell?.victim === 'volume-server' ? 'shared' : 'local',
});

/** Why a cell can't be tried; null when it can. */
export function obstacleOf({ phase, victim, fault }: Cell): string | null {
  if (clockOf(fault) !== null && !hasOwnClock(victim)) {
    return 'its clocks are not read through the C library of a process that the lab starts';
  }
  if (clockOf(fault)?.wallOffsetMs === 0 && victim.endsWith('-runner')) {
    return 'its guards keep the host\'s time: no host has two monotonic clocks';
  }
  const isWay = wayTo(phase) !== null;
  if (!isWay && placeOf(phase) === null) return 'a single fault does not lead there';
  const isOfTarget = victim === 'target-vmm' || victim === 'target-guard';
  if (isOfTarget && isWay) return 'the way there has ended it already';
  if (isOfTarget && at(phase) < at('target/prepare/after')) return 'there is none yet';
  if ((victim === 'source-vmm' || victim === 'source-guard')
    && phase === 'source/release/after') return 'there is none any more';
  const cut = cutOf(fault);
  if (cut !== null && victim !== 'source-runner' && victim !== 'target-runner') {
    return 'links are cut at a host; control worker, Temporal and ledger share a machine';
  }
  if (fault === 'disk-full' && victim !== 'ledger' && !victim.endsWith('-host')) {
    return 'a disk is filled under a host or under the ledger';
  }
  if (fault === 'duplicate' || fault === 'late') {
    if (victim !== 'ledger') return 'requests are repeated to the ledger';
    if (at(phase) < at('control/prepare/after')) return 'there is nothing to repeat yet';
  }
  if (fault === 'oom' && victim.endsWith('-host')) {
    return 'memory is taken from one process; a host without any is a host that is killed';
  }
  if (fault.startsWith('sigstop') && victim.endsWith('-host')) {
    return 'a host that stands still is its runner, guards and VMMs: tried one by one';
  }
  return null;
}

/**
 * True when the guest may be booted anew after it: the only image of its memory that may run goes
 * with the victim. Anywhere else a new boot is a loss that the protocol should have prevented.
 */
export function mayBootAnew({ phase, victim, fault }: Cell): boolean {
  if (fault !== 'sigkill' && fault !== 'oom') return false;
  const ofSource = victim === 'source-vmm' || victim === 'source-host';
  const ofTarget = victim === 'target-vmm' || victim === 'target-host';
  const place = placeOf(phase);
  if (place === null) return ofSource;
  if (phase === 'post-copy') return ofSource || ofTarget;
  // Without Ready in the ledger the target's image may not run.
  if (ofSource) return place < at('target/commit/after');
  // A start that is in the ledger and can't be declined, as nobody is left who knows.
  if (victim === 'target-host') return place >= at('target/gate/before');
  return victim === 'target-vmm' && place >= at('target/cont/after');
}

/** The move may be over when the fault comes: what becomes of the VM then is no part of it. */
export const isAfterSettle = (cell: Cell | null): boolean =>
  cell !== null && at(cell.phase) >= at('control/settle/after');

/** What to choose cells from; empty lists mean all. */
export interface CellChoice {
  readonly victims: readonly Victim[];
  /** Phases, or the beginning of their names: `source/stop` is both of its points. */
  readonly phases: readonly string[];
  readonly faults: readonly Fault[];
}

const isChosen = (wanted: readonly string[], name: string): boolean =>
  wanted.length === 0 || wanted.includes(name);

/** Cells of a choice, those that can't be tried included. */
export function cellsOf(choice: CellChoice): Cell[] {
  const chosenPhases = phases.filter((phase) => choice.phases.length === 0
    || choice.phases.some((wanted) => phase === wanted || phase.startsWith(`${wanted}/`)));
  return faults.filter((fault) => isChosen(choice.faults, fault)).flatMap((fault) =>
    victims.filter((victim) => isChosen(choice.victims, victim)).flatMap((victim) =>
      chosenPhases.map((phase): Cell => ({ phase, victim, fault }))));
}

/** mulberry32: small, and the same on every machine. */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Rank of a fault: kills come before stops, stops before cuts, short ones before long ones. */
const rankOf = ({ fault }: Cell): number => faults.indexOf(fault);

/** Cells in the order of a seed: by the kind of fault, shuffled within it. */
export function inOrder(cells: readonly Cell[], seed: number): Cell[] {
  const random = randomOf(seed);
  return cells.map((cell) => ({ cell, rank: rankOf(cell) + random() }))
    .toSorted((a, b) => a.rank - b.rank).map(({ cell }) => cell);
}
