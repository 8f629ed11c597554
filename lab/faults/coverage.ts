/**
 * What runs of a campaign have covered: stages of a move, and the goals that each cell serves. The
 * order in which cells serve the most goals that nothing has served yet. Pure.
 */
import { stepOfPoint } from '../../contracts/fault-points.ts';
import type { FaultStep } from '../../contracts/fault-points.ts';
import { inOrder, nameOfCell, obstacleOf, wayTo } from './cells.ts';
import type { Cell, Phase, Victim } from './cells.ts';

/** Stretches of a move that a fault may meet; several phases each. */
export const stages = [
  'preparing', 'disks', 'memory', 'blackout', 'started', 'post-copy', 'closing', 'undoing',
] as const;
export type Stage = (typeof stages)[number];

const stageOfStep: Readonly<Partial<Record<FaultStep, Stage>>> = {
  'target/check': 'preparing', 'control/prepare': 'preparing', 'target/prepare': 'preparing',
  'source/copy-disk': 'disks',
  'source/copy-memory': 'memory',
  'source/note-quiescing': 'blackout', 'source/stop': 'blackout',
  'source/device-state': 'blackout', 'source/quiesced': 'blackout', 'target/loaded': 'blackout',
  'target/close-exports': 'blackout', 'target/commit': 'blackout', 'target/gate': 'blackout',
  'target/stamp': 'blackout', 'target/started': 'blackout', 'target/lease': 'blackout',
  'target/cont': 'blackout',
  'target/open-nics': 'started', 'target/announce': 'started', 'source/close-nics': 'started',
  'source/note-handed-over': 'started',
  'target/verify': 'closing', 'control/settle': 'closing', 'source/release': 'closing',
};

/** The stage of a phase; points off the usual way are those of undoing. */
export function stageOf(phase: Phase): Stage {
  if (phase === 'memory' || phase === 'post-copy') return phase;
  // The guest runs at the target from `cont` on, and the step of copying lasts until then.
  if (phase === 'target/cont/after' || phase === 'source/copy-memory/after') return 'started';
  return stageOfStep[stepOfPoint(phase)] ?? 'undoing';
}

/** Victims that have to be killed at every single fault point. */
const everywhere: readonly Victim[] =
  ['source-runner', 'target-runner', 'source-vmm', 'target-vmm', 'ledger'];

/** Kinds of goals: every pair of these has to be tried at least once. */
export const goalKinds = {
  'victim, fault': ({ victim, fault }: Cell): string | null => `${victim}, ${fault}`,
  'stage, fault': ({ phase, fault }: Cell): string | null => `${stageOf(phase)}, ${fault}`,
  'stage, victim killed': ({ phase, victim, fault }: Cell): string | null =>
    (fault === 'sigkill' ? `${stageOf(phase)}, ${victim}` : null),
  'fault point, runner, VMM or ledger killed': ({ phase, victim, fault }: Cell): string | null =>
    (fault === 'sigkill' && everywhere.includes(victim) && phase !== 'memory'
      && phase !== 'post-copy' ? `${phase}, ${victim}` : null),
} as const satisfies Readonly<Record<string, (cell: Cell) => string | null>>;
export type GoalKind = keyof typeof goalKinds;
const kinds = Object.keys(goalKinds) as GoalKind[];

/** What a goal of a kind is worth: a fault that has never hit a victim says more than all else. */
const worthOf: Readonly<Record<GoalKind, number>> = {
  'victim, fault': 8, 'stage, fault': 3, 'stage, victim killed': 2,
  'fault point, runner, VMM or ledger killed': 1,
};

/** Goals that a cell serves, each named with its kind. */
export const goalsOf = (cell: Cell): string[] => [...worthsOf(cell).keys()];

const worthsOf = (cell: Cell): Map<string, number> => new Map(kinds.flatMap((kind) => {
  const goal = goalKinds[kind](cell);
  return goal === null ? [] : [[`${kind}: ${goal}`, worthOf[kind]] as const];
}));

/** Goals of one kind. */
export interface GoalCount {
  readonly kind: GoalKind;
  /** That some cell can serve. */
  readonly possible: number;
  readonly covered: number;
  /** Those that are left, in the order of the cells. */
  readonly open: readonly string[];
  /** Those that no cell can serve, with the reason of the last of their cells. */
  readonly impossible: readonly { readonly goal: string; readonly reason: string }[];
}

/** What cells that were tried (by name) have covered of all `cells`, kind by kind. */
export function goalCounts(cells: readonly Cell[], tried: ReadonlySet<string>): GoalCount[] {
  return kinds.map((kind) => {
    const reasons = new Map<string, string | null>();
    const covered = new Set<string>();
    for (const cell of cells) {
      const goal = goalKinds[kind](cell);
      if (goal === null) continue;
      const obstacle = obstacleOf(cell);
      if (tried.has(nameOfCell(cell))) covered.add(goal);
      // The last phase's reason: that of the first ones is often only that they are too early.
      if (reasons.get(goal) !== null) reasons.set(goal, obstacle);
    }
    const all = [...reasons];
    const possible = all.filter(([, reason]) => reason === null).map(([goal]) => goal);
    return {
      kind, possible: possible.length, covered: covered.size,
      open: possible.filter((goal) => !covered.has(goal)),
      impossible: all.flatMap(([goal, reason]) => (reason === null ? [] : [{ goal, reason }])),
    };
  });
}

/**
 * The first `count` of `cells`, each the one that serves the worthiest goals which neither `tried`
 * nor those before it serve. The usual way goes before one that needs a first harm; else the order
 * is the seed's.
 */
export function inBreadth(
  cells: readonly Cell[],
  { seed, tried, count }: {
    readonly seed: number; readonly tried: readonly Cell[]; readonly count: number;
  },
): Cell[] {
  const served = new Set(tried.flatMap(goalsOf));
  const left = inOrder(cells, seed).map((cell) => ({ cell, goals: worthsOf(cell) }));
  const chosen: Cell[] = [];
  while (chosen.length < count && left.length > 0) {
    let best = { index: 0, worth: -1 };
    for (const [index, { cell, goals }] of left.entries()) {
      const fresh = [...goals].filter(([goal]) => !served.has(goal));
      const worth = fresh.reduce((sum, [, points]) => sum + points, 0)
        + (wayTo(cell.phase) === null ? 0.5 : 0);
      if (worth > best.worth) best = { index, worth };
    }
    const [picked] = left.splice(best.index, 1);
    if (picked === undefined) break;
    chosen.push(picked.cell);
    for (const goal of picked.goals.keys()) served.add(goal);
  }
  return chosen;
}
