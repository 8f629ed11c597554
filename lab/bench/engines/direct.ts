/**
 * The product as an engine: the guest belongs to the ledger, and every move is the workflow
 * `migrateVm` on the lab's Temporal, from request to settled. Its figures come from the same
 * observers as the peers'; only `totalMs` is the session's own clock, as QEMU's is QEMU's.
 */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import { CodedError } from '../../../contracts/failures.ts';
import { hostName, requestId, vmName } from '../../../contracts/identity.ts';
import type { VmName } from '../../../contracts/identity.ts';
import { defaultPolicy } from '../../../contracts/migration.ts';
import type { MigrationOutcome, MigrationPolicy, TransferFigures } from '../../../contracts/migration.ts';
import type { VmSpec } from '../../../contracts/runner.ts';
import { runLifecycle } from '../../../payloads/lifecycle-client.ts';
import {
  commandMigration, migrationOutcome, startMigration, viewMigration,
} from '../../../payloads/migration-client.ts';
import { holdFiles } from '../../../runners/host/hold-before-resume.ts';
import { vmPaths } from '../../../runners/hypervisor/vm-directory.ts';
import {
  composeLab, connectLabTemporal, hostStateDirectory, labSegment,
} from '../../compose.ts';
import type { GuestImage, QemuProgram } from '../../guest-image.ts';
import type { Lab } from '../../lab.ts';
import type { LabHost } from '../../network/plan.ts';
import type {
  AtStarted, BenchEngine, GuestOrder, MoveReport, TotalPartsMs,
} from '../engine.ts';
import { signalRunners } from '../host-processes.ts';
import { Observer, blackoutOf } from '../observer.ts';
import { benchCpuModel, benchMachineType } from './qemu-process.ts';

const observerMsMax = 60_000;
/** After a rest: runners poll Temporal again, connections that were given up are made anew. */
const settleMs = 1_500;
/** How often it is looked whether a held guest stands, ms. */
const heldLookMs = 10;

/** What the product is composed of for a benchmark. */
export interface DirectPlantOptions {
  readonly lab: Lab;
  readonly program: QemuProgram;
  readonly image: GuestImage;
  readonly policy: Pick<MigrationPolicy, 'postCopy' | 'downtimeBudgetMs' | 'exactness'>;
}

/** The product's spec of a guest that the benchmark orders. Pure. */
export function specOf(options: {
  readonly vm: VmName; readonly guest: GuestOrder; readonly image: GuestImage;
}): VmSpec {
  const { guest, image } = options;
  return {
    version: 1, name: options.vm, vcpuCount: guest.vcpuCount, memoryBytes: guest.memoryBytes,
    machineType: benchMachineType, cpuModel: benchCpuModel,
    disks: guest.diskBytes === 0 ? [] : [{
      name: 'data', format: guest.disk?.format ?? 'raw', sizeBytes: guest.diskBytes,
      sourceImage: guest.disk?.sourceImage ?? null, volume: 'local',
    }],
    nics: [{
      name: 'n0', macAddress: guest.macAddress, address: guest.address, segment: labSegment,
    }],
    boot: {
      kind: 'kernel', kernel: image.kernel, initrd: image.initrd, commandLine: guest.commandLine,
    },
    failover: 'none',
  };
}

/** Where a VM's own monitor for observers is. */
export const observerSocketOf = (lab: Lab, host: LabHost, vm: VmName): string =>
  vmPaths(join(hostStateDirectory(lab, host), 'vms'), vm).observerSocket;

/** Where hosts of a benchmark look whether a moved guest is to be held. */
const holdDirectoryOf = (lab: Lab): string => join(lab.directories.data, 'hold');

/** The composed product. */
export class DirectPlant {
  readonly #options: DirectPlantOptions;
  readonly #client: Client;
  #engines = 0;

  private constructor(options: DirectPlantOptions, client: Client) {
    this.#options = options;
    this.#client = client;
  }

  static async raise(options: DirectPlantOptions): Promise<DirectPlant> {
    const holdDirectory = holdDirectoryOf(options.lab);
    mkdirSync(holdDirectory, { recursive: true });
    const services = await composeLab({ ...options, holdDirectory });
    return new DirectPlant(options, await connectLabTemporal(services));
  }

  /** An engine for one guest; with `atStarted` each of its moves is held at Started for it. */
  async engine(guest: GuestOrder, atStarted: AtStarted | null = null): Promise<BenchEngine> {
    this.#engines += 1;
    return await Promise.resolve(
      new DirectEngine({
        ...this.#options, client: this.#client, guest, number: this.#engines, atStarted,
      }));
  }

  async close(): Promise<void> {
    await this.#client.connection.close();
  }
}

interface DirectEngineOptions extends DirectPlantOptions {
  readonly client: Client;
  readonly guest: GuestOrder;
  readonly number: number;
  readonly atStarted: AtStarted | null;
}

class DirectEngine implements BenchEngine {
  readonly name = 'direct';
  readonly mark = null;
  readonly #options: DirectEngineOptions;
  #vm: VmName | null = null;
  #host: LabHost;
  #observer: Observer | null = null;
  #requests = 0;
  #isResting = false;

  constructor(options: DirectEngineOptions) {
    this.#options = options;
    this.#host = options.lab.host(1);
  }

  async boot(): Promise<void> {
    await this.discard();
    const { lab, client, guest, image, number } = this.#options;
    this.#requests += 1;
    const vm = vmName(`bench-${number}-${this.#requests}`);
    this.#host = lab.host(1);
    const { outcome } = await runLifecycle(client, {
      step: 'create',
      input: {
        version: 1, spec: specOf({ vm, guest, image }), host: hostName(this.#host.name),
        request: requestId(`r${this.#requests}`), start: true,
      },
    });
    if (outcome.kind !== 'completed') {
      throw new CodedError('vm/start-failed',
        outcome.kind === 'failed' ? `${outcome.failure.message}: ${outcome.failure.detail}` : '');
    }
    this.#vm = vm;
    this.#observer = await Observer.attach(observerSocketOf(lab, this.#host, vm), 10_000);
  }

  /**
   * An idle guest under TCG and idle runners cost the peers CPU time. The guest is paused as theirs
   * are, its clock with it, while the runners are stopped and don't see it.
   */
  async rest(): Promise<void> {
    this.#isResting = true;
    this.#signalRunners('SIGSTOP');
    await this.#observer?.client.execute('stop');
  }

  async wake(): Promise<void> {
    if (!this.#isResting) return;
    this.#isResting = false;
    try {
      await this.#observer?.client.execute('cont');
    } finally {
      // Also for a guest that died meanwhile: only its runner can clean up after it.
      this.#signalRunners('SIGCONT');
    }
    await sleep(settleMs);
  }

  #signalRunners(signal: NodeJS.Signals): void {
    signalRunners([this.#options.lab.host(1), this.#options.lab.host(2)], signal);
  }

  host(): LabHost {
    return this.#host;
  }

  async move(limitMs: number): Promise<MoveReport> {
    const { lab, client, policy } = this.#options;
    const [vm, source] = [this.#vm, this.#observer];
    if (vm === null || source === null) throw new Error('direct has no guest');
    const targetHost = lab.host(this.#host.number === 1 ? 2 : 1);
    source.clear();
    this.#requests += 1;
    const begunMs = performance.now();
    const watching = Observer.attach(observerSocketOf(lab, targetHost, vm), observerMsMax)
      .catch(() => null);
    const held = this.#hold(vm, { source: this.#host, target: targetHost });
    const { migration } = await startMigration(client, {
      version: 1, vm, target: hostName(targetHost.name), request: requestId(`m${this.#requests}`),
      policy: { ...defaultPolicy, ...policy, deadlineMs: limitMs },
    });
    const disk = this.#options.guest.diskBytes > 0 ? timeDiskPhase(client, migration) : null;
    const outcome = await this.#outcome(migration, limitMs);
    const diskPhase = disk === null ? null : await disk.end();
    const seenHeld = await held.end();
    const endedAtMs = Date.now();
    const workflowMs = performance.now() - begunMs;
    if (outcome === null) return { outcome: 'timeout', reason: `no outcome in ${limitMs} ms` };
    const target = outcome.kind === 'completed' ? await watching : null;
    const report = reportOf({
      outcome, source, target, workflowMs, diskPhase, seenHeld, endedAtMs,
    });
    if (report.outcome === 'completed') {
      source.close();
      this.#observer = target;
      this.#host = targetHost;
    } else {
      void watching.then((observer) => observer?.close());
    }
    return report;
  }

  async discard(): Promise<void> {
    await this.wake();
    const vm = this.#vm;
    this.#observer?.close();
    this.#observer = null;
    this.#vm = null;
    if (vm === null) return;
    this.#requests += 1;
    const input = { version: 1, vm, request: requestId(`d${this.#requests}`) } as const;
    const { client } = this.#options;
    await runLifecycle(client, { step: 'stop', input: { ...input, graceMs: 0 } });
    await runLifecycle(client, { step: 'delete', input });
  }

  /** Holds the move at Started, if somebody wants that, until `atStarted` has done its work. */
  #hold(
    vm: VmName, hosts: { readonly source: LabHost; readonly target: LabHost },
  ): { readonly end: () => Promise<Readonly<Record<string, unknown>>> } {
    const { atStarted, lab } = this.#options;
    if (atStarted === null) return { end: () => Promise.resolve({}) };
    const { hold, held } = holdFiles(holdDirectoryOf(lab), vm);
    writeFileSync(hold, '');
    let isOver = false;
    const work = (async (): Promise<Readonly<Record<string, unknown>>> => {
      while (!existsSync(held)) {
        if (isOver) return {};
        await sleep(heldLookMs);
      }
      const beganMs = performance.now();
      try {
        const found = await atStarted({ ...hosts, vm });
        return { ...found, heldMs: Math.round(performance.now() - beganMs) };
      } finally {
        rmSync(hold, { force: true });
      }
    })();
    work.catch(() => undefined);
    return {
      end: async () => {
        isOver = true;
        try {
          return await work;
        } finally {
          rmSync(hold, { force: true });
        }
      },
    };
  }

  async #outcome(
    migration: Parameters<typeof migrationOutcome>[1], limitMs: number,
  ): Promise<MigrationOutcome | null> {
    const { client } = this.#options;
    // The workflow has its own deadline; the grace is for a product that misses it.
    const timer = Promise.withResolvers<null>();
    const timeout = setTimeout(() => timer.resolve(null), limitMs + 15_000);
    const ended = migrationOutcome(client, migration);
    ended.catch(() => undefined);
    try {
      const outcome = await Promise.race([ended, timer.promise]);
      if (outcome === null) {
        await commandMigration(client, migration, { kind: 'cancel', by: 'bench' })
          .catch(() => undefined);
      }
      return outcome;
    } finally {
      clearTimeout(timeout);
    }
  }
}

/** How often the phase is asked for: the error of a disk phase's time is at most twice this. */
const phaseLookMs = 50;

/** The disk's part of a move, as seen from outside. */
interface DiskPhase {
  /** Length of the phase `copy-disk`, ms; null if it was never seen. */
  readonly diskMs: number | null;
  /** Modes of the mirror that users were shown in it, in their order. */
  readonly mirrorModes: readonly string[];
  /** What users were told of it last. */
  readonly mirrorSaid: string;
}

/** Follows the phase `copy-disk` of a move until it is over or `end` is called. */
function timeDiskPhase(
  client: Client, migration: Parameters<typeof viewMigration>[1],
): { readonly end: () => Promise<DiskPhase> } {
  let [begunMs, endedMs, isOver]: [number | null, number | null, boolean] = [null, null, false];
  const mirrorModes: string[] = [];
  let mirrorSaid = '';
  const looking = (async (): Promise<void> => {
    while (!isOver && endedMs === null) {
      const view = await viewMigration(client, migration).catch(() => null);
      if (view?.status.phase === 'copy-disk') {
        begunMs ??= performance.now();
        const { mirrorMode = 'none', convergence = '' } = view.status.progress ?? {};
        if (mirrorModes.at(-1) !== mirrorMode) mirrorModes.push(mirrorMode);
        if (convergence !== '') mirrorSaid = convergence;
      } else if (begunMs !== null) {
        endedMs = performance.now();
      }
      await sleep(phaseLookMs);
    }
  })();
  return {
    end: async () => {
      isOver = true;
      await looking;
      const diskMs = begunMs === null || endedMs === null ? null : Math.round(endedMs - begunMs);
      return { diskMs, mirrorModes, mirrorSaid };
    },
  };
}

/**
 * The total until memory is whole at the target. The session's own total ends with the hand-over,
 * so the rest of a post-copy is added: until the move was settled and told to us, without the check
 * of the memory: later than the last page and so never in our favour. Pure.
 */
export function directTotal(
  figures: Pick<TransferFigures, 'totalMs' | 'totalParts' | 'mode'>,
  resumedToToldMs: number,
): { readonly totalMs: number; readonly totalPartsMs: TotalPartsMs | null } {
  const { totalMs, totalParts } = figures;
  if (totalParts === null || figures.mode === 'pre-copy') {
    return { totalMs, totalPartsMs: totalParts };
  }
  return {
    totalMs: totalMs - totalParts.closingMs + resumedToToldMs,
    totalPartsMs: { ...totalParts, closingMs: resumedToToldMs },
  };
}

function reportOf(seen: {
  readonly outcome: MigrationOutcome; readonly source: Observer; readonly target: Observer | null;
  readonly workflowMs: number; readonly diskPhase: DiskPhase | null;
  readonly seenHeld: Readonly<Record<string, unknown>>; readonly endedAtMs: number;
}): MoveReport {
  const { outcome, source, target, workflowMs, diskPhase, seenHeld, endedAtMs } = seen;
  if (outcome.kind === 'failed') {
    return { outcome: 'failed', reason: `${outcome.failure.code}: ${outcome.failure.detail}` };
  }
  if (outcome.kind === 'damaged') return { outcome: 'failed', reason: outcome.exactness.detail };
  if (outcome.kind === 'cancelled') {
    return { outcome: 'failed', reason: `cancelled by ${outcome.by}` };
  }
  const blackout = target === null ? null : blackoutOf(source.events, target.events);
  if (blackout === null) {
    return { outcome: 'failed', reason: 'the observers saw no STOP and RESUME' };
  }
  const { figures, exactness } = outcome;
  // Settle waits for the check of the memory, which begins when every page is there.
  const checkMs = Math.max(exactness?.source?.wallMs ?? 0, exactness?.target?.wallMs ?? 0);
  const resumeUs = target?.events.find((event) => event.name === 'RESUME')?.stampUs ?? 0;
  return {
    outcome: 'completed', ...blackout, rounds: figures.rounds,
    ...directTotal(figures, endedAtMs - resumeUs / 1000 - checkMs),
    details: {
      handOverMs: figures.totalMs,
      workflowMs: Math.round(workflowMs), ...diskPhase, ...seenHeld,
      ownDowntimeMs: figures.downtimeMs,
      downtimePartsMs: figures.downtimeParts, bytesOnWire: figures.bytesOnWire,
      postCopyFaults: figures.postCopyFaults, convergence: figures.convergence, exactness,
    },
  };
}
