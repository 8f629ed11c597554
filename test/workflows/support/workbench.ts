/** Servers and workers for the workflow tests; a missing tool is a reason that the skip prints. */
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DefaultLogger, Runtime, Worker } from '@temporalio/worker';
import type { NativeConnection } from '@temporalio/worker';
import { TestWorkflowEnvironment } from '@temporalio/testing';
import { defineSearchAttributeKey, SearchAttributeType } from '@temporalio/common';
import { createHostActivities } from '../../../activities/host-activities.ts';
import type { HostName } from '../../../contracts/identity.ts';
import { hostTaskQueue } from '../../../contracts/identity.ts';
import { migrationSearchAttributes } from '../../../contracts/migration.ts';
import { registerSearchAttributes } from '../../../infra/temporal/namespace.ts';
import { workerDataConverter } from '../../../payloads/temporal-connection.ts';
import {
  controlDeployment, controlWorkerOptions,
} from '../../../runners/control/composition.ts';
import { makeCurrent } from '../../../runners/control/deployment.ts';
import type { FakeDatacentre } from './fake-datacentre.ts';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const jarFolder = join(root, '.cache/temporal-test-server');
const testServerVersion = '1.38.0';

const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>novacron</groupId><artifactId>test-server</artifactId><version>1</version><dependencies>
<dependency><groupId>io.temporal</groupId><artifactId>temporal-test-server</artifactId>
<version>${testServerVersion}</version></dependency></dependencies></project>
`;

/** Full path of a program, null when it is not installed. */
export function findOnPath(program: string): string | null {
  const folders = (process.env['PATH'] ?? '').split(':');
  return folders.map((folder) => join(folder, program)).find((path) => existsSync(path)) ?? null;
}

/** Path of a wrapper that behaves like the test server's binary, or why there is none. */
function testServerWrapper(): { readonly path: string } | { readonly missing: string } {
  const java = findOnPath('java');
  if (java === null) return { missing: 'java (apt install default-jre-headless)' };
  const wrapper = join(jarFolder, 'run');
  const isFetched = existsSync(jarFolder)
    && readdirSync(jarFolder).includes(`temporal-test-server-${testServerVersion}.jar`);
  if (!isFetched) {
    const maven = findOnPath('mvn');
    if (maven === null) return { missing: 'mvn (apt install maven)' };
    mkdirSync(jarFolder, { recursive: true });
    writeFileSync(join(jarFolder, 'pom.xml'), pom);
    execFileSync(maven, [
      '-q', '-B', '-f', join(jarFolder, 'pom.xml'), 'dependency:copy-dependencies',
      `-DoutputDirectory=${jarFolder}`,
    ], { stdio: 'inherit', timeout: 300_000 });
  }
  writeFileSync(wrapper, `#!/bin/sh\nexec ${java} -XX:TieredStopAtLevel=1 -Xmx512m -cp '${jarFolder}/*' `
    + 'io.temporal.testserver.TestServer "$@"\n');
  chmodSync(wrapper, 0o755);
  return { path: wrapper };
}

export type Bench =
  | { readonly env: TestWorkflowEnvironment; readonly missing: null }
  | { readonly env: null; readonly missing: string };

let isRuntimeInstalled = false;
/** Keeps the SDK's own lines out of the tests' output; NOVACRON_TEST_LOG shows them. */
export function quiet(): void {
  if (isRuntimeInstalled) return;
  isRuntimeInstalled = true;
  const level = process.env['NOVACRON_TEST_LOG'] === undefined ? 'ERROR' : 'DEBUG';
  Runtime.install({
    logger: new DefaultLogger(level), shutdownSignals: [],
    telemetryOptions: { logging: { filter: level, forward: {} } },
  });
}

/** The time-skipping server; `missing` says what to install when it can't run here. */
export async function timeSkippingBench(): Promise<Bench> {
  quiet();
  const wrapper = testServerWrapper();
  if ('missing' in wrapper) return { env: null, missing: wrapper.missing };
  const env = await TestWorkflowEnvironment.createTimeSkipping({
    server: { executable: { type: 'existing-path', path: wrapper.path } },
    client: { dataConverter: workerDataConverter(null) },
  });
  await registerSearchAttributes(env.client);
  return { env, missing: null };
}

/** A development server with the real features: updates, search attributes, versioning. */
export async function devServerBench(options: {
  readonly payloadKeysPath?: string | null;
} = {}): Promise<Bench> {
  quiet();
  const path = findOnPath('temporal');
  if (path === null) {
    return { env: null, missing: 'temporal (go install github.com/temporalio/cli/cmd/temporal@v1.5.1)' };
  }
  const env = await TestWorkflowEnvironment.createLocal({
    server: {
      executable: { type: 'existing-path', path },
      searchAttributes: Object.values(migrationSearchAttributes).map(
        (name) => defineSearchAttributeKey(name, SearchAttributeType.KEYWORD),
      ),
    },
    client: { dataConverter: workerDataConverter(options.payloadKeysPath ?? null) },
  });
  return { env, missing: null };
}

export interface WorkerOptionsOfTest {
  readonly env: TestWorkflowEnvironment;
  readonly centre: FakeDatacentre;
  readonly payloadKeysPath?: string | null;
  readonly buildId?: string;
}

const common = (env: TestWorkflowEnvironment) => ({
  connection: env.nativeConnection satisfies NativeConnection,
  ...(env.namespace === undefined ? {} : { namespace: env.namespace }),
  // Heartbeats reach the server at once, so that cancellations come back at once.
  maxHeartbeatThrottleInterval: 300,
  defaultHeartbeatThrottleInterval: 300,
  shutdownGraceTime: 500,
});

/** A control worker on the server under test; not running yet. */
export async function controlWorker(
  { env, centre, payloadKeysPath = null, buildId = 'b1' }: WorkerOptionsOfTest,
): Promise<Worker> {
  return Worker.create({
    ...common(env),
    ...(await controlWorkerOptions({
      ledger: centre.control, client: env.client, payloadKeysPath,
    })),
    // The time-skipping server knows no versions; a real one refuses PINNED without them.
    ...(env.supportsTimeSkipping ? {} : {
      workerDeploymentOptions: {
        version: { deploymentName: controlDeployment, buildId },
        useWorkerVersioning: true, defaultVersioningBehavior: 'PINNED' as const,
      },
    }),
  });
}

/** The worker of one host. */
export function hostWorker(
  { env, centre, payloadKeysPath = null }: WorkerOptionsOfTest,
  host: HostName,
): Promise<Worker> {
  return Worker.create({
    ...common(env),
    taskQueue: hostTaskQueue(host),
    activities: createHostActivities(centre.operations(host)),
    dataConverter: workerDataConverter(payloadKeysPath),
  });
}

/** Workers that poll until `stop`. */
export class Running {
  readonly #runs: { readonly worker: Worker; readonly run: Promise<void> }[] = [];

  add(worker: Worker): Worker {
    this.#runs.push({ worker, run: worker.run() });
    return worker;
  }

  /** Ends one worker, as a restart of its process would. */
  async end(worker: Worker): Promise<void> {
    const found = this.#runs.find((entry) => entry.worker === worker);
    if (found === undefined || worker.getState() !== 'RUNNING') return;
    worker.shutdown();
    await found.run;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#runs.map(({ worker }) => this.end(worker)));
  }
}

/** Control worker and one worker a host, all polling. */
export async function allWorkers(options: WorkerOptionsOfTest): Promise<Running> {
  const running = new Running();
  running.add(await controlWorker(options));
  if (!options.env.supportsTimeSkipping) {
    const version = { deploymentName: controlDeployment, buildId: options.buildId ?? 'b1' };
    await makeCurrent(options.env.client, version, 'always');
  }
  for (const host of options.centre.hosts) running.add(await hostWorker(options, host));
  return running;
}
