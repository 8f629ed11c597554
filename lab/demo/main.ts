/**
 * `npm run demo`: a data centre of two hosts on this machine, a VM with a database in it, a client
 * outside that keeps writing, and one live move. The lab stays up afterwards, so that the run can
 * be looked at in Temporal's UI and the next demo starts warm; `--down` removes it.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import { nextView, progressLine } from '../../cli/progress.ts';
import type { ProgressView } from '../../cli/progress.ts';
import { workflowUrl } from '../../cli/workflow-url.ts';
import { CodedError } from '../../contracts/failures.ts';
import { hostName, requestId, vmName } from '../../contracts/identity.ts';
import type { MigrationId, VmName } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type { MigrationOutcome } from '../../contracts/migration.ts';
import type { Ledger, VmEntry } from '../../contracts/ownership.ts';
import { formatBytes } from '../../contracts/units.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import {
  migrationOutcome, startMigration, viewMigration,
} from '../../payloads/migration-client.ts';
import { specOf } from '../bench/engines/direct.ts';
import { loadRequest } from '../bench/measure.ts';
import { OutsideClient } from '../client/outside-client.ts';
import { connectLabLedger, connectLabTemporal, imageDirectory } from '../compose.ts';
import { placeGuestImage, projectRoot } from '../guest-image.ts';
import { closingLines, closingOf, demoFaults } from './closing.ts';
import { readDemoOptions } from './options.ts';
import type { DemoOptions } from './options.ts';
import { demoName, removeDemo, setStage } from './stage.ts';
import type { Stage } from './stage.ts';
import { seizeTurn, takeTurn } from './turn.ts';

const demoVm = vmName('demo');
const demoAddress = '198.18.1.10';
const demoMac = '52:4e:43:00:01:0a';
const bootMsMax = 120_000;
const restingMs = 2_000;
const lookEveryMs = 250;

const begunMs = performance.now();
const tell = (text: string): void => {
  const seconds = ((performance.now() - begunMs) / 1000).toFixed(1);
  process.stderr.write(`${seconds.padStart(6)} s  ${text}\n`);
};

async function demoDown(): Promise<void> {
  const turn = await seizeTurn(demoName, projectRoot);
  const removed = await removeDemo();
  turn.leave();
  tell(removed.length === 0
    ? 'nothing of the demo was there' : `removed lab ${removed.join(', ')}`);
}

async function removeOldVm(client: Client, ledger: Ledger): Promise<void> {
  if (await ledger.readVm(demoVm) === null) return;
  const request = (): ReturnType<typeof requestId> => requestId(randomBytes(6).toString('hex'));
  tell('removing the VM of the demo before');
  await runLifecycle(client, {
    step: 'stop', input: { version: 1, vm: demoVm, request: request(), graceMs: 0 } });
  await runLifecycle(client, {
    step: 'delete', input: { version: 1, vm: demoVm, request: request() } });
}

async function createVm(stage: Stage, client: Client, options: DemoOptions): Promise<void> {
  const image = placeGuestImage(imageDirectory(stage.lab));
  const { outcome } = await runLifecycle(client, {
    step: 'create',
    input: {
      version: 1, host: hostName('h1'), start: true,
      request: requestId(randomBytes(6).toString('hex')),
      spec: specOf({
        vm: demoVm, image,
        guest: {
          memoryBytes: options.memory, vcpuCount: options.vcpus, diskBytes: options.disk,
          address: `${demoAddress}/24`, macAddress: demoMac,
          commandLine: `${image.kernelCommandLine} novacron.ip=${demoAddress}/24 `
            + `novacron.pattern=${Math.ceil(options.workingSet / 1_048_576)}M`,
        },
      }),
    },
  });
  if (outcome.kind !== 'completed') {
    throw new CodedError('vm/start-failed', outcome.kind === 'failed'
      ? `${outcome.failure.code}: ${outcome.failure.detail}` : 'creating was cancelled');
  }
}

/** Follows the move on one line (a terminal) or silently, until its outcome. */
async function follow(client: Client, migration: MigrationId): Promise<MigrationOutcome> {
  const screen = process.stderr;
  const ended = migrationOutcome(client, migration);
  let open = true;
  ended.then(() => (open = false), () => (open = false));
  let view: ProgressView | null = null;
  while (open) {
    const seen = await viewMigration(client, migration).catch(() => null);
    if (seen !== null) {
      view = nextView(view, { status: seen.status, heartbeat: seen.status.progress });
      if (screen.isTTY) {
        screen.write(`\r\u001b[2K${progressLine(view, screen.columns ?? 100)}`);
      }
    }
    await Promise.race([ended.catch(() => undefined), sleep(lookEveryMs)]);
  }
  if (screen.isTTY) screen.write('\r\u001b[2K');
  return await ended;
}

async function entryOf(ledger: Ledger, vm: VmName): Promise<VmEntry> {
  const entry = await ledger.readVm(vm);
  if (entry === null) throw new CodedError('vm/unknown', vm);
  return entry;
}

interface Actors {
  readonly stage: Stage;
  readonly client: Client;
  readonly ledger: Ledger;
  readonly outside: OutsideClient;
}

async function moveAndWatch(actors: Actors, options: DemoOptions): Promise<boolean> {
  const { stage, client, ledger, outside } = actors;
  const { uiUrl, temporal } = stage.services;
  await outside.witness(loadRequest({
    dirtyBytesPerSecond: options.dirtyRate, workingSetBytes: options.workingSet,
    order: 'random', pages: 'full',
  }));
  await outside.witness({ op: 'start' });
  await outside.startWriting();
  await sleep(restingMs);
  const resting = await outside.report();
  const before = await outside.witness({ op: 'status' });
  const entryBefore = await entryOf(ledger, demoVm);
  await outside.mark();
  const request = requestId(randomBytes(6).toString('hex'));
  const target = hostName(entryBefore.owner === 'h1' ? 'h2' : 'h1');
  const { migration } = await startMigration(client, {
    version: 1, vm: demoVm, target, request, policy: defaultPolicy });
  tell(`moving ${demoVm} from ${entryBefore.owner} to ${target}`);
  const outcome = await follow(client, migration);
  await sleep(1_000);
  const around = await outside.report();
  await outside.stopWriting();
  await outside.witness({ op: 'stop' });
  tell('checking every page and every acknowledged write');
  const after = await outside.witness({ op: 'verify' });
  const writes = await outside.readBack();
  const entryAfter = await entryOf(ledger, demoVm);
  const closing = closingOf({
    outcome, resting, around, writes, before, after, workflowId: migration,
    accelerator: stage.services.accelerator,
    workflowUrl: uiUrl === null ? null : workflowUrl({
      uiUrl, namespace: temporal.namespace, workflowId: migration, runId: null }),
    vcpus: options.vcpus, memoryBytes: options.memory, diskBytes: options.disk,
    ownerBefore: entryBefore.owner ?? '', ownerAfter: entryAfter.owner ?? '',
    epochBefore: entryBefore.epoch, epochAfter: entryAfter.epoch,
  });
  const faults = demoFaults(closing, writes.connectionLost);
  if (outcome.kind === 'failed') {
    faults.push(`${outcome.failure.code}: ${outcome.failure.detail}`);
  }
  for (const line of closingLines(closing, around.redis.gapMsMax, faults)) {
    process.stderr.write(`${line}\n`);
  }
  if (options.json) process.stdout.write(`${JSON.stringify(closing)}\n`);
  return faults.length === 0;
}

async function demo(options: DemoOptions): Promise<boolean> {
  const turn = await takeTurn(demoName, projectRoot);
  const stage = await setStage(tell);
  const client = await connectLabTemporal(stage.services);
  const ledger = await connectLabLedger(stage.lab, stage.services);
  try {
    await removeOldVm(client, ledger);
    await createVm(stage, client, options);
    tell(`VM ${demoVm}: ${options.vcpus} vCPU, ${formatBytes(options.memory)}, boots`);
    const outside = await OutsideClient.whenGuestAnswers({
      labId: stage.lab.id, namespace: stage.lab.plan.clientNamespace, address: demoAddress,
    }, bootMsMax);
    try {
      tell('the database answers; a client outside writes');
      return await moveAndWatch({ stage, client, ledger, outside }, options);
    } finally {
      await outside.close();
    }
  } finally {
    await ledger.close();
    await client.connection.close();
    turn.leave();
    process.stderr.write(`\nTemporal's UI: ${stage.services.uiUrl}   try: node cli/main.ts vm list`
      + '   remove everything: npm run demo -- --down\n');
  }
}

const options = readDemoOptions(process.argv.slice(2));
try {
  if (process.getuid?.() !== 0) {
    throw new CodedError('input/invalid', 'network namespaces need root: run it with sudo');
  }
  if (options.down) await demoDown();
  else if (!await demo(options)) process.exitCode = 1;
} catch (error) {
  process.stderr.write(`demo: ${(error as Error).message}\n`);
  if (options.json) {
    const code = error instanceof CodedError ? error.code : 'internal';
    const { message } = error as Error;
    process.stdout.write(`${JSON.stringify({ outcome: 'failed', code, message })}\n`);
  }
  process.exitCode = 1;
}
