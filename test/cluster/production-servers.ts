/**
 * PostgreSQL and the official Temporal server as a production cluster has them: schema by Temporal's
 * own tool, mutual TLS on the frontend. Everything in one temporary folder, on loopback.
 */
import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const serverVersion = 'v1.32.1';
const cache = fileURLToPath(new URL('../../.cache/temporal-server', import.meta.url));
const postgresFolder = '/usr/lib/postgresql';

/** Temporal's schema keeps ports in a smallint: below 32768, so not the kernel's own choice. */
const portMax = 32_767;
const portMin = 20_000;

/** A free port on loopback that PostgreSQL's schema can keep. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = portMin + Math.floor(Math.random() * (portMax - portMin));
    const probe = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!isFree) continue;
    await new Promise((resolve) => probe.close(resolve));
    return port;
  }
}

/** What has to be installed before the test can run; null when all is there. */
export function missingForCluster(): string | null {
  if (!existsSync(postgresFolder)) return 'PostgreSQL (apt install postgresql)';
  if (existsSync(join(cache, 'server')) && existsSync(join(cache, 'sql'))) return null;
  try {
    execFileSync('go', ['version']);
    return null;
  } catch {
    return 'Go ≥ 1.26 (to build the official Temporal server)';
  }
}

/** Builds server and schema tool once; five minutes on two cores. */
export function buildServer(): void {
  mkdirSync(cache, { recursive: true });
  const env = { ...process.env, GOBIN: cache };
  if (!existsSync(join(cache, 'server'))) {
    execFileSync('go', ['install', `go.temporal.io/server/cmd/server@${serverVersion}`], { env });
  }
  if (!existsSync(join(cache, 'sql'))) {
    execFileSync('go', ['install', `go.temporal.io/server/cmd/tools/sql@${serverVersion}`], { env });
  }
}

function postgresProgram(name: string): string {
  const version = readdirSync(postgresFolder).sort((a, b) => Number(b) - Number(a))[0] ?? '';
  return join(postgresFolder, version, 'bin', name);
}

function idOf(flag: '-u' | '-g'): number {
  return Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }).trim());
}

/** PostgreSQL refuses to run as root: its own user, its own folder. */
export async function startPostgres(
  folder: string,
): Promise<{ readonly process: ChildProcess; readonly port: number }> {
  const port = await freePort();
  const data = join(folder, 'postgres');
  const owner = { uid: idOf('-u'), gid: idOf('-g') };
  mkdirSync(data, { mode: 0o700 });
  chownSync(data, owner.uid, owner.gid);
  execFileSync(
    postgresProgram('initdb'), ['-D', data, '-U', 'temporal', '--auth', 'trust', '-E', 'UTF8'],
    { ...owner, cwd: '/', stdio: 'pipe' },
  );
  const child = spawn(postgresProgram('postgres'), [
    '-D', data, '-p', String(port), '-c', 'listen_addresses=127.0.0.1',
    '-c', `unix_socket_directories=${data}`,
  ], { ...owner, cwd: '/', stdio: 'ignore' });
  for (let attempt = 0; ; attempt += 1) {
    try {
      execFileSync(postgresProgram('pg_isready'), ['-h', '127.0.0.1', '-p', String(port)]);
      break;
    } catch (error) {
      if (attempt > 100) throw error;
      await sleep(200);
    }
  }
  return { process: child, port };
}

/** Databases and schema by Temporal's tool. */
export function applySchema(postgresPort: number): void {
  const tool = (database: string, ...rest: string[]): void => {
    execFileSync(join(cache, 'sql'), [
      '--plugin', 'postgres12', '--ep', '127.0.0.1', '--port', String(postgresPort),
      '--user', 'temporal', '--db', database, ...rest,
    ], { stdio: 'pipe' });
  };
  for (const [database, schema] of [
    ['temporal', 'postgresql/v12/temporal'], ['temporal_visibility', 'postgresql/v12/visibility'],
  ] as const) {
    tool(database, 'create-database');
    tool(database, 'setup-schema', '-v', '0.0');
    tool(database, 'update-schema', '--schema-name', schema);
  }
}

export interface ServerFiles {
  readonly certPath: string;
  readonly keyPath: string;
  readonly caPath: string;
}

const store = (database: string, port: number): object => ({
  sql: {
    pluginName: 'postgres12', databaseName: database, connectAddr: `127.0.0.1:${port}`,
    connectProtocol: 'tcp', user: 'temporal', password: '', maxConns: 10, maxIdleConns: 10,
    maxConnLifetime: '1h',
  },
});

/** Writes the server's configuration (JSON is YAML); answers its path and the frontend's port. */
export async function writeServerConfig(
  { folder, postgresPort, tls }: {
    readonly folder: string; readonly postgresPort: number; readonly tls: ServerFiles;
  },
): Promise<{ readonly path: string; readonly port: number }> {
  const port = await freePort();
  const rpc = async (grpcPort: number): Promise<object> => ({
    rpc: { grpcPort, membershipPort: await freePort(), bindOnLocalHost: true },
  });
  const server = {
    certFile: tls.certPath, keyFile: tls.keyPath, requireClientAuth: true,
    clientCaFiles: [tls.caPath],
  };
  const client = { serverName: 'localhost', rootCaFiles: [tls.caPath] };
  const dynamic = join(folder, 'dynamic.yaml');
  writeFileSync(dynamic, 'system.forceSearchAttributesCacheRefreshOnRead:\n  - value: true\n');
  const path = join(folder, 'server.yaml');
  writeFileSync(path, JSON.stringify({
    log: { stdout: true, level: 'error' },
    persistence: {
      defaultStore: 'main', visibilityStore: 'visibility', numHistoryShards: 4,
      datastores: {
        main: store('temporal', postgresPort),
        visibility: store('temporal_visibility', postgresPort),
      },
    },
    global: {
      membership: { maxJoinDuration: '30s', broadcastAddress: '127.0.0.1' },
      tls: {
        frontend: { server, client },
        internode: { server, client },
        systemWorker: { certFile: tls.certPath, keyFile: tls.keyPath, client },
      },
    },
    services: {
      frontend: await rpc(port),
      matching: await rpc(await freePort()),
      history: await rpc(await freePort()),
      worker: await rpc(await freePort()),
    },
    clusterMetadata: {
      enableGlobalNamespace: false, failoverVersionIncrement: 10, masterClusterName: 'active',
      currentClusterName: 'active',
      clusterInformation: {
        active: {
          enabled: true, initialFailoverVersion: 1, rpcName: 'frontend',
          rpcAddress: `localhost:${port}`,
        },
      },
    },
    dcRedirectionPolicy: { policy: 'noop' },
    dynamicConfigClient: { filepath: dynamic, pollInterval: '10s' },
  }, null, 1));
  return { path, port };
}

/** Starts the server; it is ready when its frontend answers, which the caller asks. */
export const startServer = (configPath: string): ChildProcess =>
  spawn(join(cache, 'server'), ['--config-file', configPath, '--allow-no-auth', 'start'], {
    stdio: ['ignore', openSync(`${configPath}.log`, 'a'), openSync(`${configPath}.log`, 'a')],
  });

/** Last lines that a server wrote, for the message of a test that could not start it. */
export const serverLog = (configPath: string): string =>
  readFileSync(`${configPath}.log`, 'utf8').split('\n').slice(-12).join('\n');

/** Waits for the end of a process after a signal. */
export async function endProcess(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill(signal);
  await Promise.race([ended, sleep(20_000)]);
  if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
}
