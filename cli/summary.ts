/** The closing summary of a move, for people and scripts: pure. */
import type { ExactnessReport } from '../contracts/exactness.ts';
import type { MigrationOutcome } from '../contracts/migration.ts';
import { formatBytes } from '../contracts/units.ts';
import { exitCodeOfOutcome } from './exit-codes.ts';
import type { CommandResult } from './output.ts';
import { formatMillis } from './progress.ts';

/** Sums of measured floats may differ from their total by this much, ms. */
const sumToleranceMs = 0.01;

const partName = (field: string): string =>
  field.replace(/Ms$/, '').replace(/([A-Z])/g, (letter) => ` ${letter.toLowerCase()}`);

/**
 * Named parts of a downtime that sum to it. What the parts do not explain is shown as a part of its
 * own, so that a gap in the measuring is seen and not hidden.
 */
export function downtimeParts(
  { downtimeMs, parts }: {
    readonly downtimeMs: number; readonly parts: Readonly<Record<string, number>>;
  },
): Record<string, number> {
  const sum = Object.values(parts).reduce((total, value) => total + value, 0);
  const rest = downtimeMs - sum;
  return Math.abs(rest) <= sumToleranceMs ? { ...parts } : { ...parts, unexplainedMs: rest };
}

function exactnessLine({ kind, detail, source, target }: ExactnessReport): string {
  const cost = source === null || target === null ? ''
    : ` (checked in ${formatMillis(Math.max(source.wallMs, target.wallMs))}, `
      + `${formatMillis(source.cpuMs + target.cpuMs)} of CPU)`;
  return `  memory     ${kind}${detail === '' ? '' : `: ${detail}`}${cost}`;
}

/** Where to see the run. */
export interface MoveLinks {
  readonly workflowId: string;
  readonly runId: string | null;
  readonly workflowUrl: string | null;
}

function figuresOf(outcome: MigrationOutcome): {
  fields: Record<string, unknown>; lines: string[];
} {
  if (outcome.kind !== 'completed') return { fields: {}, lines: [] };
  const { figures, epochBefore, epochAfter, digest, exactness } = outcome;
  const parts = downtimeParts({
    downtimeMs: figures.downtimeMs,
    parts: figures.downtimeParts as unknown as Readonly<Record<string, number>>,
  });
  const widest = Math.max(...Object.keys(parts).map((field) => partName(field).length));
  return {
    fields: {
      engine: 'direct', rounds: figures.rounds, bytesOnWire: figures.bytesOnWire,
      memoryBytesSent: figures.memoryBytesSent, diskBytesSent: figures.diskBytesSent,
      totalMs: figures.totalMs, downtimeMs: figures.downtimeMs, downtimePartsMs: parts,
      postCopyFaults: figures.postCopyFaults, convergence: figures.convergence,
      digest, epochBefore, epochAfter, ...(exactness === undefined ? {} : { exactness }),
    },
    lines: [
      `  total      ${formatMillis(figures.totalMs)}, ${figures.rounds} rounds, `
        + `${formatBytes(figures.bytesOnWire)} on the wire (${figures.convergence})`,
      `  downtime   ${formatMillis(figures.downtimeMs)}`,
      ...Object.entries(parts).map(([field, value]) =>
        `    ${partName(field).padEnd(widest)}  ${value.toFixed(2).padStart(9)} ms`),
      ...(figures.postCopyFaults > 0 ? [`  post-copy  ${figures.postCopyFaults} faults`] : []),
      ...(exactness === undefined ? [] : [exactnessLine(exactness)]),
      `  owner      ${outcome.source} → ${outcome.target}, epoch ${epochBefore} → ${epochAfter}`,
    ],
  };
}

function headline(outcome: MigrationOutcome): string[] {
  switch (outcome.kind) {
    case 'completed': return [`${outcome.vm} runs on ${outcome.target}`];
    case 'cancelled':
      return [`cancelled by ${outcome.by}; ${outcome.vm} runs on ${outcome.source ?? 'its host'}`];
    case 'damaged':
      return [
        `${outcome.vm} stands on ${outcome.target}: ${outcome.exactness.detail}`,
        '  both images are kept; decide what becomes of it:',
        `    novacron vm resolve ${outcome.vm} --accept   it goes on as it is`,
        `    novacron vm resolve ${outcome.vm} --cold     it boots from its disk`,
      ];
    case 'failed': {
      const { code, message, detail, remedy } = outcome.failure;
      return [
        `the move of ${outcome.vm} failed: ${message} (${code})`,
        `  where: ${detail}`,
        `  what to do: ${remedy}`,
        outcome.runsOn === null ? '  the VM runs nowhere' : `  the VM runs on ${outcome.runsOn}`,
      ];
    }
  }
}

/** Result of a move that ended; `downtimePartsMs` sums to `downtimeMs`. */
export function moveResult(outcome: MigrationOutcome, links: MoveLinks): CommandResult {
  const { fields, lines } = figuresOf(outcome);
  const compensation = outcome.kind === 'cancelled' || outcome.kind === 'failed'
    ? outcome.compensationFailures : [];
  return {
    exitCode: exitCodeOfOutcome(outcome),
    fields: {
      outcome: outcome.kind, ...links, vm: outcome.vm, source: outcome.source,
      target: outcome.target, ...fields,
      ...(outcome.kind === 'failed' ? { failure: outcome.failure, runsOn: outcome.runsOn } : {}),
      ...(outcome.kind === 'damaged' ? { exactness: outcome.exactness } : {}),
      ...(outcome.kind === 'cancelled' ? { by: outcome.by } : {}),
      ...(compensation.length > 0 ? { compensationFailures: compensation } : {}),
    },
    lines: [
      ...headline(outcome), ...lines,
      ...compensation.map(({ code, detail }) => `  left behind: ${code}: ${detail}`),
      ...(links.workflowUrl === null ? [] : [`  ${links.workflowUrl}`]),
    ],
  };
}
