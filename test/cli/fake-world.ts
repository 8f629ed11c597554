/**
 * A world for `novacron` without processes or servers: scripted moves, an in-memory ledger view.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Backend, MigrationRow, Workflows } from '../../cli/backend.ts';
import type { World } from '../../cli/context.ts';
import { runCommandLine } from '../../cli/program.ts';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type { EvacuateHostInput, EvacuationCommand, EvacuationStatus,
} from '../../contracts/evacuation.ts';
import { evacuationProgress } from '../../contracts/evacuation-progress.ts';
import { CodedError } from '../../contracts/failures.ts';
import { migrationId, vmName } from '../../contracts/identity.ts';
import type { HostName, MigrationId } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type { MigrateVmInput, MigrationOutcome, MigrationStatus, SessionCommand, SessionProgress,
} from '../../contracts/migration.ts';
import type { HostView, LedgerEvent, VmEntry } from '../../contracts/ownership.ts';
import type { DiskSpec, VmSpec } from '../../contracts/runner.ts';
import type { LifecycleOutcome } from '../../contracts/vm-lifecycle.ts';
import type { EvacuationView } from '../../payloads/evacuation-client.ts';
import type { LifecycleRequest } from '../../payloads/lifecycle-client.ts';

export const spec: VmSpec = {
  version: 1, name: vmName('db'), vcpuCount: 2, memoryBytes: 1 << 30,
  machineType: 'pc-i440fx-7.2', cpuModel: 'qemu64', failover: 'none',
  disks: [{ name: 'data', format: 'raw', sizeBytes: 1 << 30, sourceImage: null, volume: 'local' }],
  nics: [{ name: 'eth0', macAddress: '52:54:00:00:00:01', address: '198.18.1.10/24',
    segment: 'lab' }],
  boot: { kind: 'disk', firmware: 'bios', cloudInitUserData: null },
};

export const sharedDisk: DiskSpec = {
  name: 'data', format: 'raw', sizeBytes: 1 << 30, sourceImage: null,
  volume: {
    kind: 'shared', name: 'db-data', server: { name: 'store', address: '198.18.0.3', port: 7500 },
  },
};

export const entryOf = (more: Partial<VmEntry> = {}): VmEntry => ({
  version: 1, vm: vmName('db'), phase: 'owned', epoch: 3, owner: 'h1' as HostName, previous: null,
  migration: null, target: null, lastStarted: 3, startedBefore: 2, startedBy: null,
  diskHolder: 'h1' as HostName, quiesced: null, ready: null, postCopyAllowed: true,
  commitDelegated: true, desired: 'running', spec, cause: 'started by host/h1',
  changedAtMs: 1_000_000, ...more,
});

export const hostOf = (name: string, more: Partial<HostView> = {}): HostView => ({
  version: 1, publicKeyPem: '', cordoned: false, joinedAtMs: 0, changedAtMs: 0, silentForMs: 500,
  facts: { version: 1, name, migrationAddress: '198.18.2.11', peerPort: 7410, lanePort: 7411,
    segments: ['lab'], accelerator: 'tcg', qemuVersion: '7.2.0', machineTypes: [],
      kernelRelease: '6.18',
    memoryBytes: 8 * (1 << 30), diskFreeBytes: 1 << 30, cpuFlags: [], features: [] },
  ...more,
});

export const progressOf = (more: Partial<SessionProgress> = {}): SessionProgress => ({
  version: 1, phase: 'memory', paused: false, round: 0, bytesPlanned: 1000, bytesDone: 0,
  bytesOnWire: 0, diskBytesTotal: 0, diskBytesDone: 0, dirtyBytesPerSecond: 0,
  sendBytesPerSecond: 100, etaMs: null, estimatedDowntimeMs: null, convergence: '',
  mirrorMode: 'none', ...more,
});

export const migration = migrationId(vmName('db'), 'r1' as MigrateVmInput['request']);

export const statusOf = (more: Partial<MigrationStatus> = {}): MigrationStatus => ({
  size: null,
  version: 1, phase: 'copy-memory', vm: vmName('db'), source: 'h1' as HostName,
  target: 'h2' as HostName, engine: 'direct', percent: 4, pointOfNoReturnPassed: false,
  policy: defaultPolicy, progress: null, waitingFor: null, outcome: null, ...more,
});

export const completedOf = (more: object = {}): MigrationOutcome => ({
  version: 1, kind: 'completed', migration, vm: vmName('db'), source: 'h1' as HostName,
  target: 'h2' as HostName, digest: 'd', epochBefore: 3, epochAfter: 4,
  figures: {
    totalMs: 2345.6, downtimeMs: 13, rounds: 4, bytesOnWire: 123_456_789,
    memoryBytesSent: 120_000_000, diskBytesSent: 0, postCopyFaults: 0,
      convergence: 'fits the budget',
    downtimeParts: { stopMs: 1.5, lastPassMs: 3, deviceStateMs: 2, flushMs: 0.5, ledgerMs: 4,
      gateMs: 0.75, resumeMs: 1.25 } as unknown as never,
  },
  ...more,
} as unknown as MigrationOutcome);

export const evacuationStatusOf = (more: Partial<EvacuationStatus> = {}): EvacuationStatus => ({
  version: 1, host: 'h1' as HostName, request: 'r' as MigrateVmInput['request'], phase: 'moving',
  paused: false, policy: defaultEvacuationPolicy, rows: [], opensAtMs: null, waitingFor: null,
  startedAtMs: 0, cancelledBy: null, outcome: null, ...more,
});
/** A look at it, with the figures that follow from its rows. */
export const evacuationViewOf = (
  more: Partial<EvacuationStatus> = {}, closedAs: string | null = null,
): EvacuationView => {
  const [status, moves] = [evacuationStatusOf(more), new Map()];
  return { status, moves, closedAs, progress: evacuationProgress(status, moves, 10_000) };
};

/** What the fake answers; tests change it before they run a command. */
export interface Scene {
  entries: VmEntry[];
  hosts: HostView[];
  /** Views (or failures to get one) in order, the last again and again; null: no such move. */
  statuses: (MigrationStatus | Error)[] | null;
  outcome: MigrationOutcome | Error | null;
  rows: MigrationRow[];
  lifecycle: LifecycleOutcome | null;
  /** Replaces the whole side by an error. */
  temporalFails: Error | null;
  ledgerFails: Error | null;
  files: Record<string, string>;
  columns: number | null;
  /** Target of the run that a request already stands for; null: of this very request. */
  startedTarget: string | null;
  started: MigrateVmInput[];
  commands: SessionCommand[];
  proposals: LedgerEvent[];
  lifecycleRequests: LifecycleRequest[];
  /** Looks at an evacuation in order, the last again and again; null: there is none. */
  evacuation: (EvacuationView | Error)[] | null;
  evacuations: EvacuateHostInput[];
  evacuationCommands: EvacuationCommand[];
  programs: { script: string; argv: readonly string[] }[];
  interrupt: Promise<void>;
}

export const scene = (more: Partial<Scene> = {}): Scene => ({
  entries: [entryOf()], hosts: [hostOf('h1'), hostOf('h2', { cordoned: true })],
  statuses: [statusOf()], outcome: null, rows: [], lifecycle: null, temporalFails: null,
  ledgerFails: null, files: {}, columns: null, startedTarget: null, started: [], commands: [],
    proposals: [],
  lifecycleRequests: [], evacuation: null, evacuations: [], evacuationCommands: [],
  programs: [], interrupt: new Promise(() => {}), ...more,
});

function workflowsOf(on: Scene): Workflows {
  let looks = 0;
  let evacuationLooks = 0;
  const view = (): MigrationStatus => {
    if (on.statuses === null) throw new CodedError('migration/unknown', migration);
    const status = on.statuses[Math.min(looks, on.statuses.length - 1)];
    looks += 1;
    if (status instanceof Error) throw status;
    if (status === undefined) throw new CodedError('migration/unknown', migration);
    return status;
  };
  const isShown = (): boolean => on.statuses === null || looks >= on.statuses.length;
  return {
    startMove: async (input) => {
      on.started.push(input);
      return { migration: migrationId(input.vm, input.request), runId: 'run-1',
        target: on.startedTarget ?? input.target };
    },
    viewMove: async () => ({ status: view(), check: null, attempt: 1, lastFailure: null }),
    commandMove: async ({ command }) => {
      on.commands.push(command);
      return view();
    },
    outcomeOf: async () => {
      while (on.outcome === null || !isShown()) await delay(1);
      if (on.outcome instanceof Error) throw on.outcome;
      return on.outcome;
    },
    listMoves: async ({ vm, openOnly, countMax }) => on.rows
      .filter((row) => (vm === null || row.vm === vm) && (!openOnly || row.outcome === 'running'))
      .slice(0, countMax),
    runLifecycle: async (request) => {
      on.lifecycleRequests.push(request);
      if (on.lifecycle === null) throw new Error('no lifecycle outcome in this scene');
      return { workflowId: `${request.step}/x/y`, outcome: on.lifecycle };
    },
    startEvacuation: async (input) => {
      on.evacuations.push(input);
      return { runId: 'run-1', joined: false };
    },
    viewEvacuation: async (host) => {
      const seen = on.evacuation?.[Math.min(evacuationLooks, on.evacuation.length - 1)];
      evacuationLooks += 1;
      if (seen === undefined) throw new CodedError('evacuation/unknown', host);
      if (seen instanceof Error) throw seen;
      return seen;
    },
    commandEvacuation: async ({ command }) => {
      on.evacuationCommands.push(command);
      return evacuationStatusOf();
    },
    workflowUrl: ({ workflowId }) => `http://127.0.0.1:8233/namespaces/default/workflows/${
      encodeURIComponent(workflowId)}`,
  };
}

function backendOf(on: Scene): Backend {
  const workflows = workflowsOf(on);
  return {
    config: async () => ({ version: 1, temporal: { address: '127.0.0.1:7233', namespace: 'default',
      tls: null, uiUrl: null }, payloadKeysPath: null, ledger: { address: '127.0.0.1', port: 1 },
    tls: { certPath: '/c', keyPath: '/k', caPath: '/a' }, revokedPath: '/r', hosts: {} }),
    workflows: async () => {
      if (on.temporalFails !== null) throw on.temporalFails;
      return workflows;
    },
    ledger: async () => {
      if (on.ledgerFails !== null) throw on.ledgerFails;
      return {
        readVm: async (vm) => on.entries.find((entry) => entry.vm === vm) ?? null,
        listVms: async () => on.entries,
        listHosts: async () => on.hosts,
        propose: async (events) => {
          on.proposals.push(...events);
          return events.map(() => ({ accepted: true as const, changed: true, index: 1,
            entry: null }));
        },
        migrationEnd: async (_: MigrationId) => null,
        close: async () => {},
      };
    },
    close: async () => {},
  };
}

/** Runs a command line in a scene. `last` is the parsed last line of stdout. */
export async function novacron(on: Scene, ...argv: string[]): Promise<{
  code: number; stdout: string; stderr: string; last: Record<string, unknown>;
}> {
  let stdout = '';
  let stderr = '';
  const world: World = {
    stdout: { write: (text) => { stdout += text; }, columns: null },
    stderr: { write: (text) => { stderr += text; }, columns: on.columns },
    environment: { USER: 'ada' }, workingDirectory: '/', projectDirectory: '/',
    now: () => 2_000_000, sleep: () => delay(1), randomText: () => 'abc123',
    interrupted: on.interrupt,
    openBackend: () => backendOf(on),
    readTextFile: async (path) => {
      const text = on.files[path];
      if (text === undefined) throw new Error('ENOENT: no such file');
      return text;
    },
    runProgram: async (input) => {
      on.programs.push(input);
      return 4;
    },
    joinConsole: async () => 'escape',
  };
  const code = await runCommandLine({ argv, world });
  let last: Record<string, unknown> = {};
  try {
    last = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>;
  } catch {
    // Text output: a test that wants JSON fails on what it looks for.
  }
  return { code, stdout, stderr, last };
}
