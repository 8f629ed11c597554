/**
 * The host runner: `node runners/host/main.ts --config FILE`, one a host, in the host's network
 * namespace, as root. Composition only: it opens what the parts need, joins the ledger, adopts what
 * runs, and polls the host's own task queue. Prints a line with msg "ready"; SIGTERM ends it, the
 * VMs run on.
 */
import { createPrivateKey, createPublicKey } from 'node:crypto';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { NativeConnection, Worker } from '@temporalio/worker';
import type { Logger } from 'pino';
import type { Registry } from 'prom-client';
import { z } from 'zod';
import { createHostActivities } from '../../activities/host-activities.ts';
import type { HostOperations } from '../../activities/host-operations.ts';
import { exactnessReport } from '../../contracts/exactness.ts';
import { CodedError } from '../../contracts/failures.ts';
import {
  hostName, hostTaskQueue, parseMigrationId, type MigrationId, type VmName,
} from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { LedgerEvent } from '../../contracts/ownership.ts';
import { openRevocationList } from '../../payloads/revocation.ts';
import { temporalConnectionOptions, workerDataConverter } from '../../payloads/temporal-connection.ts';
import { configPathOf, hostConfig, loadConfig, type HostConfig } from '../config.ts';
import { openMemoryEngine } from '../data-plane/memory-engine.ts';
import { FaultPoints } from '../fault-points.ts';
import { openFaultPoints } from '../fault-points-server.ts';
import { NicGate } from '../gates/nic-gate.ts';
import { volumeRaiser } from '../gates/volume-gate.ts';
import { signDeclined, signTransferRecord } from '../group/ownership/signing.ts';
import { raiseThisProcess } from '../cpu-priority.ts';
import { readChecked, writeDurably } from '../hypervisor/durable-file.ts';
import { Hypervisor } from '../hypervisor/hypervisor.ts';
import { probeQemu } from '../hypervisor/qemu-binary.ts';
import { tapPrefix } from '../hypervisor/tap.ts';
import type { VolumeLinkConfig } from '../hypervisor/volume-links.ts';
import { connectLedger } from '../../payloads/ledger-client.ts';
import { checkHealth, createLogger, createMetrics, serveTelemetry } from '../telemetry.ts';
import { installTemporalRuntime } from '../temporal-runtime.ts';
import type { HostContext } from './host-context.ts';
import { gatherFacts } from './host-facts.ts';
import { HostRunner } from './host-runner.ts';
import { countedMoves, registerHostMetrics } from './host-metrics.ts';
import { boottimeMs, callGuard, LeaseKeeper } from './lease-keeper.ts';
import { serveLocalApi } from './local-api.ts';
import { nowMs, servePeerLinks, type PeerGreeter } from './move/peer-link.ts';
import { barredOperations } from './move/barred-ports.ts';
import type { MoveNote } from './move/ports.ts';
import { HostGates, type HostGatesOptions } from './vm-gates.ts';

/** VM users of one host; more VMs than this do not fit a host. */
const uidCount = 1_000;
/** Activities that are asked to end get this long; sessions do not need it, they are re-joined. */
const drainMs = 2_000;
const joinRetryMs = 500;

const noteShape = z.strictObject({
  version: z.literal(1),
  migration: z.string().refine((text) => parseMigrationId(text) !== null)
    .transform((text) => text as MigrationId),
  side: z.enum(['source', 'target']),
  epoch: z.int(),
  peer: z.string().transform((text) => hostName(text)),
  stage: z.enum(['open', 'quiescing', 'handed-over', 'damaged']),
  exactness: exactnessReport.optional(),
  lanes: z.strictObject({
    address: z.string(), port: z.int(), count: z.int(), bandwidthBytesPerSecond: z.number(),
  }).optional(),
});

interface Stores {
  readonly note: (vm: VmName, note: MoveNote | null) => Promise<void>;
  readonly readNote: (vm: VmName) => Promise<MoveNote | null>;
  readonly gatePath: (vm: VmName) => string;
  readonly noteEnded: HostContext['noteEnded'];
  readonly wasEnded: HostContext['wasEnded'];
}

const endedShape = z.strictObject({ version: z.literal(1) });

async function openStores(config: HostConfig): Promise<Stores> {
  const notes = join(config.stateDir, 'moves');
  const gates = join(config.stateDir, 'gates');
  const ended = join(config.stateDir, 'ended');
  for (const directory of [notes, gates, ended]) {
    await mkdir(directory, { recursive: true, mode: 0o700 });
  }
  const notePath = (vm: VmName): string => join(notes, `${vm}.json`);
  const endedPath = (vm: VmName): string => join(ended, `${vm}.json`);
  return {
    note: async (vm, note) => {
      if (note === null) await rm(notePath(vm), { force: true });
      else await writeDurably(notePath(vm), `${JSON.stringify(note)}\n`);
    },
    readNote: (vm) => readChecked(notePath(vm), noteShape),
    gatePath: (vm) => join(gates, `${vm}.json`),
    noteEnded: async (vm, isEnded) => {
      if (isEnded) await writeDurably(endedPath(vm), '{"version":1}\n');
      else await rm(endedPath(vm), { force: true });
    },
    wasEnded: async (vm) => (await readChecked(endedPath(vm), endedShape)) !== null,
  };
}

/** Leases and gates know of each other: a renewed lease keeps cards open. */
async function openGates(
  parts: Pick<HostGatesOptions, 'epochPath' | 'log' | 'raiseVolume'>
    & Pick<HostContext, 'ledger' | 'hypervisor'>,
): Promise<{ readonly leases: LeaseKeeper; readonly gates: HostGates }> {
  const leases = new LeaseKeeper({
    ...parts, callGuard, boottimeMs,
    sleep: async (ms) => { await sleep(ms); },
    admitNics: (vm, leaseMs) => gates.admit(vm, leaseMs),
  });
  const gates = new HostGates({
    ...parts, leases, nicGate: await NicGate.open({ tapPrefix }),
  });
  return { leases, gates };
}

/** With what VMMs are led to shared volumes; null where no VM has any. */
const volumeLinksOf = ({ volumePath, tls, revokedPath }: HostConfig): VolumeLinkConfig | null =>
  volumePath === null ? null : { command: [volumePath], tls: { ...tls, revokedPath } };

async function openContext(
  config: HostConfig, log: Logger, greet: PeerGreeter,
): Promise<{
  readonly context: HostContext;
  readonly leases: LeaseKeeper;
  readonly close: () => Promise<void>;
}> {
  for (const directory of [config.stateDir, config.runtimeDir]) {
    await mkdir(directory, { recursive: true, mode: 0o711 });
  }
  const host = hostName(config.name);
  const revoked = openRevocationList({ path: config.revokedPath, caPath: config.tls.caPath });
  const qemu = await probeQemu({
    command: config.qemu.command, imgCommand: config.qemuImg, environment: config.qemu.environment,
  });
  const hypervisor = new Hypervisor({
    host, qemu, logger: log,
    vmsDirectory: join(config.stateDir, 'vms'),
    memoryDirectory: config.memoryDir,
    guardCommand: [config.guardPath],
    volumes: volumeLinksOf(config),
    accelerator: config.accelerator,
    uids: { first: config.uidBase, count: uidCount },
    imageDirectories: config.imageDirectories,
    bridges: Object.fromEntries(
      config.vmBridge === null ? [] : config.segments.map((name) => [name, config.vmBridge ?? '']),
    ),
    firmware: config.firmware,
  });
  await hypervisor.open();
  const stores = await openStores(config);
  const ledger = connectLedger({ ...config.ledger, tls: config.tls, revoked, logger: log });
  const { leases, gates } = await openGates({
    ledger, hypervisor, log, epochPath: stores.gatePath,
    raiseVolume: volumeRaiser({ material: config.tls, revoked }),
  });
  const engine = openMemoryEngine();
  const lanes = engine.openListener({
    ...config.lanes,
    tls: { ...config.tls, revokedSerials: revoked.entries().map(({ serial }) => serial) },
  });
  const peers = await servePeerLinks({
    ...config.peer, greet, log, tls: { material: config.tls, revoked },
  });
  const facts = await gatherFacts({ config, qemu, peerPort: peers.port, lanePort: lanes.port });
  const signingKey = createPrivateKey(await readFile(config.tls.keyPath));
  const context: HostContext = {
    config, host, facts, hypervisor, ledger, engine, lanes, revoked, signingKey, log,
    points: new FaultPoints(),
    world: {
      host, ledger, nowMs,
      sign: (record) => signTransferRecord(record, signingKey),
      signDeclined: (statement) => signDeclined(statement, signingKey),
      note: stores.note,
      sleep: async (ms) => { await sleep(ms); },
    },
    gatesOf: gates.of,
    forgetGates: gates.forget,
    readNote: stores.readNote,
    noteEnded: stores.noteEnded,
    wasEnded: stores.wasEnded,
  };
  const close = async (): Promise<void> => {
    await peers.close();
    await lanes.close();
    hypervisor.close();
    await ledger.close();
  };
  return { context, leases, close };
}

/** What tells the ledger who this is; repeats of it are this host's sign of life. */
function joinEvent({ facts, signingKey }: HostContext): LedgerEvent {
  const publicKeyPem = createPublicKey(signingKey).export({ type: 'spki', format: 'pem' });
  return { kind: 'join-host', facts, publicKeyPem: publicKeyPem.toString() };
}

/** Joins the ledger; waits while it is away. */
async function joinLedger(context: HostContext, event: LedgerEvent): Promise<void> {
  for (;;) {
    try {
      const [verdict] = await context.ledger.propose([event]);
      if (verdict?.accepted === true) return;
      throw new CodedError('ownership/refused', verdict?.reason ?? 'no verdict');
    } catch (error) {
      if (!(error instanceof CodedError && error.code === 'ownership/unreachable')) throw error;
      context.log.warn({ detail: error.detail }, 'waiting for the ledger');
      await sleep(joinRetryMs);
    }
  }
}

/** The runner's operations, counted for Prometheus. */
function countedOperations(
  { runner, context, registry }: {
    readonly runner: HostRunner; readonly context: HostContext; readonly registry: Registry;
  },
): HostOperations {
  const noteMove = registerHostMetrics(registry, {
    livingVmCount: async () => (await context.hypervisor.living()).length,
    openMoveCount: () => runner.openMoveCount,
  });
  return countedMoves(runner.operations(), noteMove);
}

async function run(config: HostConfig, log: Logger): Promise<void> {
  const unraised = await raiseThisProcess({ session: false });
  if (unraised !== null) {
    log.warn({ why: unraised }, 'moves share the CPUs with the guests: CAP_SYS_NICE is missing');
  }
  const sdkMetrics = await installTemporalRuntime(log);
  let greet: PeerGreeter = () => ({ code: 'link/lost', detail: 'the runner is starting' });
  const { context, leases, close } = await openContext(config, log, (...words) => greet(...words));
  const signOfLife = joinEvent(context);
  await joinLedger(context, signOfLife);
  const runner = new HostRunner(context);
  greet = runner.greet;
  const renewing = setInterval(() => {
    leases.renewAll().catch((error: unknown) => log.error({ err: error }, 'renewing failed'));
    context.ledger.propose([signOfLife]).catch((error: unknown) => {
      log.debug({ error: String(error) }, 'the ledger does not hear this host');
    });
  }, timing.leaseRenewEveryMs);
  // First what a lease has stopped goes on: adoption asks the VMMs.
  await leases.renewAll();
  await runner.adopt();
  runner.watch();
  const connection = await NativeConnection.connect(
    await temporalConnectionOptions(withServerName(config.temporal)),
  );
  const registry = createMetrics({ process: 'host', name: config.name });
  const operations = countedOperations({ runner, context, registry });
  const worker = await Worker.create({
    connection,
    namespace: config.temporal.namespace,
    taskQueue: hostTaskQueue(context.host),
    activities: createHostActivities(barredOperations(operations, context.points)),
    dataConverter: workerDataConverter(config.payloadKeysPath),
    identity: `host@${context.host}`,
    shutdownGraceTime: drainMs,
    // Else the SDK holds heartbeats back for 0.8 of their timeout: one late one would be a failure.
    maxHeartbeatThrottleInterval: timing.heartbeatEveryMs,
  });
  const checks = {
    worker: (): void => {
      if (worker.getState() !== 'RUNNING') throw new Error(worker.getState());
    },
    ledger: async (): Promise<void> => { await context.ledger.listHosts(); },
  };
  const telemetry = config.metrics === null ? null : await serveTelemetry({
    ...config.metrics, logger: log, checks, extraMetrics: sdkMetrics, registry,
  });
  const local = await serveLocalApi({
    socketPath: join(config.runtimeDir, 'host.sock'),
    operations: runner.localOperations(async () => (await checkHealth(checks)).checks),
    logger: log,
  });
  const faults = await openFaultPoints(config, context);
  const stop = (): void => {
    log.info('stopping; the VMs run on');
    if (worker.getState() === 'RUNNING') worker.shutdown();
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
  const polling = worker.run();
  log.info({ facts: { ...context.facts, cpuFlags: context.facts.cpuFlags.length } }, 'ready');
  try {
    await polling;
  } finally {
    clearInterval(renewing);
    await Promise.all([telemetry?.close(), local.close(), faults?.close(), runner.close()]);
    await close();
    await connection.close();
  }
}

/** The certificate's name decides which server it is, not the address that leads to it. */
const withServerName = (temporal: HostConfig['temporal']) => ({
  ...temporal,
  tls: temporal.tls === null ? null : { ...temporal.tls, serverName: null },
});

const config = loadConfig({
  path: configPathOf({ argv: process.argv, environment: process.env }), schema: hostConfig,
});
const log = createLogger({ process: 'host', name: config.name, level: config.logLevel });
try {
  await run(config, log);
  log.info('stopped');
} catch (error) {
  log.fatal({ err: error }, 'host runner failed');
  process.exitCode = 1;
}
