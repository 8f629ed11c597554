/** The demo's closing words, for scripts and for people. Pure. */
import { downtimeParts } from '../../cli/summary.ts';
import { formatMillis } from '../../cli/progress.ts';
import type { MigrationOutcome } from '../../contracts/migration.ts';
import { formatBytes } from '../../contracts/units.ts';
import type { ClientReport } from '../client/outside-client.ts';
import type { ReadBack } from '../client/redis-writer.ts';
import type { WitnessStatus } from '../client/witness-line.ts';

/** Everything that was seen. */
export interface DemoEvidence {
  readonly outcome: MigrationOutcome;
  readonly workflowId: string;
  readonly workflowUrl: string | null;
  readonly accelerator: 'tcg' | 'kvm';
  readonly vcpus: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly resting: ClientReport;
  readonly around: ClientReport;
  readonly writes: ReadBack;
  readonly before: WitnessStatus;
  readonly after: WitnessStatus;
  readonly ownerBefore: string;
  readonly ownerAfter: string;
  readonly epochBefore: number;
  readonly epochAfter: number;
}

/** The object that `--json` ends with. */
export interface DemoClosing {
  readonly outcome: MigrationOutcome['kind'];
  readonly workflowId: string;
  readonly workflowUrl: string | null;
  readonly engine: 'direct';
  readonly accelerator: 'tcg' | 'kvm';
  readonly vcpus: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly rounds: number | null;
  readonly bytesOnWire: number | null;
  readonly totalMs: number | null;
  readonly downtimeMs: number | null;
  readonly downtimePartsMs: Readonly<Record<string, number>> | null;
  readonly outsideGapMsMax: number;
  readonly restingGapMsP99: number;
  readonly ackedWrites: number;
  readonly lostWrites: number;
  readonly bootIdBefore: string;
  readonly bootIdAfter: string;
  readonly guestSelfCheckFailures: number;
  readonly ownerBefore: string;
  readonly ownerAfter: string;
  readonly epochBefore: number;
  readonly epochAfter: number;
}

const rounded = (value: number): number => Number(value.toFixed(2));

/** Names without their unit, for the object whose own name carries it. */
const unitless = (parts: Readonly<Record<string, number>>): Record<string, number> =>
  Object.fromEntries(
    Object.entries(parts).map(([name, value]) => [name.replace(/Ms$/, ''), value]));

export function closingOf(seen: DemoEvidence): DemoClosing {
  const figures = seen.outcome.kind === 'completed' ? seen.outcome.figures : null;
  return {
    outcome: seen.outcome.kind,
    workflowId: seen.workflowId,
    workflowUrl: seen.workflowUrl,
    engine: 'direct',
    accelerator: seen.accelerator,
    vcpus: seen.vcpus,
    memoryBytes: seen.memoryBytes,
    diskBytes: seen.diskBytes,
    rounds: figures?.rounds ?? null,
    bytesOnWire: figures?.bytesOnWire ?? null,
    totalMs: figures === null ? null : rounded(figures.totalMs),
    downtimeMs: figures === null ? null : figures.downtimeMs,
    downtimePartsMs: figures === null ? null : unitless(downtimeParts({
      downtimeMs: figures.downtimeMs, parts: { ...figures.downtimeParts },
    })),
    outsideGapMsMax: rounded(seen.around.echo.gapMsMax),
    restingGapMsP99: rounded(seen.resting.echo.gapMsP99),
    ackedWrites: seen.writes.ackedWrites,
    lostWrites: seen.writes.lostWrites,
    bootIdBefore: seen.before.bootId,
    bootIdAfter: seen.after.bootId,
    guestSelfCheckFailures: seen.after.selfCheckFailures,
    ownerBefore: seen.ownerBefore,
    ownerAfter: seen.ownerAfter,
    epochBefore: seen.epochBefore,
    epochAfter: seen.epochAfter,
  };
}

/** What keeps a demo from being a good one; empty when it is. */
export function demoFaults(closing: DemoClosing, connectionLost: boolean): string[] {
  return [
    ...(closing.outcome === 'completed' ? [] : [`the move ended as ${closing.outcome}`]),
    ...(closing.lostWrites === 0 ? [] : [`${closing.lostWrites} acknowledged writes were lost`]),
    ...(closing.ackedWrites > 0 ? [] : ['no write was acknowledged']),
    ...(closing.bootIdAfter === closing.bootIdBefore ? [] : ['the guest was booted again']),
    ...(closing.guestSelfCheckFailures === 0
      ? [] : [`the guest found ${closing.guestSelfCheckFailures} damaged pages`]),
    ...(closing.outcome !== 'completed' || closing.epochAfter > closing.epochBefore
      ? [] : ['the epoch did not rise']),
    ...(connectionLost ? ['the TCP connection from outside broke'] : []),
  ];
}

/** The same for people. */
export function closingLines(
  closing: DemoClosing, redisGapMsMax: number, faults: readonly string[],
): string[] {
  const parts = Object.entries(closing.downtimePartsMs ?? {})
    .map(([name, value]) => `${name} ${value.toFixed(2)}`).join(', ');
  return [
    faults.length === 0
      ? `The VM moved from ${closing.ownerBefore} to ${closing.ownerAfter} while it ran.`
      : `Not as it should be: ${faults.join('; ')}.`,
    ...(closing.totalMs === null || closing.downtimeMs === null ? [] : [
      `  copied      ${formatBytes(closing.bytesOnWire ?? 0)} in ${formatMillis(closing.totalMs)},`
        + ` ${closing.rounds} rounds`,
      `  stood still ${closing.downtimeMs.toFixed(2)} ms (${parts})`,
    ]),
    `  outside     longest silence ${closing.outsideGapMsMax} ms`
      + ` (at rest 99 % below ${closing.restingGapMsP99} ms),`
      + ` longest wait for a write ${redisGapMsMax.toFixed(1)} ms`,
    `  database    ${closing.ackedWrites} acknowledged writes read back,`
      + ` ${closing.lostWrites} lost`,
    `  guest       same boot ${closing.bootIdBefore === closing.bootIdAfter}, `
      + `${closing.guestSelfCheckFailures} damaged pages`,
    `  owner       ${closing.ownerBefore} epoch ${closing.epochBefore} -> `
      + `${closing.ownerAfter} epoch ${closing.epochAfter}`,
    ...(closing.workflowUrl === null ? [] : [`  see it      ${closing.workflowUrl}`]),
  ];
}
