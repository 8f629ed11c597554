/**
 * Records histories for the replay test: `node test/replay/record.ts [NAME…]`. Run it when a new kind
 * of run appears; existing files stay as they are, they stand for runs that began with older code.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';
import proto from '@temporalio/proto';
import { defaultEvacuationPolicy } from '../../contracts/evacuation.ts';
import type { EvacuationPolicy } from '../../contracts/evacuation.ts';
import { plainReport } from '../../contracts/exactness.ts';
import { CodedError } from '../../contracts/failures.ts';
import { hostName, lifecycleWorkflowId, requestId, vmName } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import { commandEvacuation, startEvacuation } from '../../payloads/evacuation-client.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { commandMigration, startMigration } from '../../payloads/migration-client.ts';
import { FakeDatacentre } from '../workflows/support/fake-datacentre.ts';
import { allWorkers, devServerBench } from '../workflows/support/workbench.ts';

const [source, target] = [hostName('host-a'), hostName('host-b')];
const bench = await devServerBench();
if (bench.env === null) throw new Error(`needs ${bench.missing}`);
const { env } = bench;

/** A run to record; answers its workflow id. Each has a VM of its own, so that no id comes twice. */
type Scene = (centre: FakeDatacentre) => Promise<string>;
let vmNumber = 0;

async function move(
  centre: FakeDatacentre,
  during: (id: Parameters<typeof commandMigration>[1]) => Promise<void> = async () => {},
): Promise<string> {
  vmNumber += 1;
  const vm = await centre.runningVm(`db-${vmNumber}`, source);
  const { handle, migration } = await startMigration(env.client, {
    version: 1, vm, target, request: requestId('r1'), policy: defaultPolicy,
  });
  await during(migration);
  await handle.result();
  return migration;
}
const whileCopying = async (centre: FakeDatacentre): Promise<void> => {
  while (centre.sessions.size === 0) await sleep(10);
};
const failing = (step: string, error: CodedError): Scene => async (centre) => {
  centre.faults.set(step, () => { throw error; });
  return move(centre);
};

const vmsOn = (centre: FakeDatacentre, count: number): Promise<VmName[]> => Promise.all(
  Array.from({ length: count }, () => {
    vmNumber += 1;
    return centre.runningVm(`db-${vmNumber}`, source);
  }));
async function evacuate(
  policy: Partial<EvacuationPolicy>, during: () => Promise<void> = async () => {},
): Promise<string> {
  const { handle } = await startEvacuation(env.client, {
    version: 1, host: source, request: requestId(`e${vmNumber}`),
    policy: { ...defaultEvacuationPolicy, ...policy },
  });
  await during();
  await handle.result();
  return handle.workflowId;
}

const scenes: Readonly<Record<string, Scene>> = {
  'move-completed': async (centre) => {
    centre.disks = 2;
    return move(centre);
  },
  'move-looked-at': async (centre) => {
    centre.copyMs = 7_000;
    return move(centre);
  },
  'move-commanded': async (centre) => {
    centre.copyMs = 1_000;
    return move(centre, async (id) => {
      await whileCopying(centre);
      await commandMigration(env.client, id, { kind: 'pause' });
      await commandMigration(
        env.client, id, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 1_000_000 },
      );
      await commandMigration(env.client, id, { kind: 'set-downtime-budget', downtimeBudgetMs: 50 });
      await commandMigration(env.client, id, { kind: 'post-copy-now' });
      await commandMigration(env.client, id, { kind: 'resume' });
    });
  },
  'move-cancelled': async (centre) => {
    centre.copyMs = 60_000;
    return move(centre, async (id) => {
      await whileCopying(centre);
      await commandMigration(env.client, id, { kind: 'cancel', by: 'a test' });
    });
  },
  'move-refused': failing('checkTarget', new CodedError('preflight/memory', '1 GiB is missing')),
  'move-failed': failing('switchover', new CodedError('engine/failed', 'broken')),
  'move-committed-late': failing('started', new CodedError('link/refused', 'after Started')),
  'move-warned': failing('releaseSource', new CodedError('vmm/protocol', 'odd')),
  'move-copied-afresh': async (centre) => {
    centre.disks = 1;
    let lossesLeft = 2;
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      if (lossesLeft-- > 0) throw new CodedError('runner/session-lost', 'started anew');
    });
    return move(centre);
  },
  'move-carried-on': async (centre) => {
    let lossesLeft = 4;
    centre.faults.set('copyMemoryAndSwitchOver', () => {
      if (lossesLeft-- > 0) throw new CodedError('runner/session-lost', 'started anew');
    });
    return move(centre);
  },
  'evacuation-completed': async (centre) => {
    const vms = await vmsOn(centre, 3);
    centre.faults.set('checkTarget', ({ vm }, host) => {
      if (vm === vms[0] && host === target) throw new CodedError('preflight/memory', 'full');
    });
    let broken = false;
    centre.faults.set('switchover', () => {
      if (!broken) {
        broken = true;
        throw new CodedError('engine/failed', 'once');
      }
    });
    return evacuate({ cordon: true });
  },
  'evacuation-commanded': async (centre) => {
    await vmsOn(centre, 3);
    centre.copyMs = 1_500;
    return evacuate({ bandwidthBytesPerSecond: 8_000_000 }, async () => {
      await whileCopying(centre);
      await commandEvacuation(env.client, source, { kind: 'pause' });
      await commandEvacuation(
        env.client, source, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 4_000_000 });
      await commandEvacuation(env.client, source, { kind: 'set-concurrency', concurrency: 3 });
      await commandEvacuation(env.client, source, { kind: 'resume' });
    });
  },
  'evacuation-cancelled': async (centre) => {
    await vmsOn(centre, 3);
    centre.copyMs = 60_000;
    return evacuate({}, async () => {
      await whileCopying(centre);
      await commandEvacuation(env.client, source, { kind: 'cancel', by: 'a test' });
    });
  },
  'evacuation-carried': async (centre) => {
    await vmsOn(centre, 6);
    return evacuate({ historyEventsMax: 60 });
  },
  'move-damaged': async (centre) => {
    centre.damage = { ...plainReport('exact', 'a test'), kind: 'damaged', damagedPageCount: 1 };
    return move(centre);
  },
  'move-lost-before-settle': async (centre) => {
    let looks = 0;
    centre.faults.set('verifyTarget', () => {
      looks += 1;
      if (looks > 1) centre.since = 'vm/memory-lost';
    });
    return move(centre);
  },
  'resolve-damaged': async (centre) => {
    centre.damage = { ...plainReport('exact', 'a test'), kind: 'damaged', damagedPageCount: 1 };
    await move(centre);
    const vm = vmName(`db-${vmNumber}`);
    await runLifecycle(env.client, {
      step: 'resolve', input: { version: 1, vm, request: requestId('d1'), choice: 'accept' },
    });
    return lifecycleWorkflowId('resolve', vm, requestId('d1'));
  },
  'create-and-start': async (centre) => {
    await runLifecycle(env.client, {
      step: 'create',
      input: {
        version: 1, spec: centre.spec('fresh'), host: source, request: requestId('c1'), start: true,
      },
    });
    return lifecycleWorkflowId('create', vmName('fresh'), requestId('c1'));
  },
};

const wanted = process.argv.slice(2);
for (const [name, scene] of Object.entries(scenes)) {
  const path = fileURLToPath(new URL(`histories/${name}.history`, import.meta.url));
  if (wanted.length === 0 ? existsSync(path) : !wanted.includes(name)) continue;
  const centre = await FakeDatacentre.open();
  const workers = await allWorkers({ env, centre });
  const workflowId = await scene(centre);
  const history = await env.client.workflow.getHandle(workflowId).fetchHistory();
  const bytes = proto.temporal.api.history.v1.History.encode(history).finish();
  writeFileSync(path, `${workflowId}\n${Buffer.from(bytes).toString('base64')}\n`);
  console.log(`${name}: ${history.events?.length} events`);
  await workers.stop();
  await centre.close();
}
await env.teardown();
