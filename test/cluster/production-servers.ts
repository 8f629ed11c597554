/**
 * PostgreSQL and the official Temporal server in a lab's control namespace, as a production cluster
 * has them: schema by Temporal's own tool, mutual TLS between its parts and towards everybody.
 */
import { execFileSync } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runCommand } from '../../lab/command.ts';
import { labPorts } from '../../lab/compose.ts';
import type { LabTemporal, Papers } from '../../lab/compose.ts';
import { cacheDirectory, projectRoot } from '../../lab/guest-image.ts';
import type { Lab } from '../../lab/lab.ts';
import { controlAddress } from '../../lab/network/plan.ts';
import { commandIn } from '../../lab/processes.ts';
import type { ProcessSpec } from '../../lab/processes.ts';
import type { TlsMaterial } from '../../payloads/certificates.ts';

const programs = join(cacheDirectory, 'temporal-server');
const postgresFolder = '/usr/lib/postgresql';
/** Namespaces of a lab are its own, so these are free; Temporal's schema takes none above 32767. */
const ports = {
  postgres: 5432, frontend: labPorts.temporalFront, matching: 7235, history: 7234, worker: 7239,
  /** Added to a service's port for its membership. */
  membershipOffset: 1_000,
} as const;
const startMsMax = 60_000;
/** Name in the frontend's certificate by which the server's parts know each other. */
const serverName = 'temporal.lab';

/** What has to be there before the profile can run; empty when all is. */
export const missingForCluster = (): string[] => [
  ...(existsSync(postgresFolder) ? [] : ['PostgreSQL']),
  ...(existsSync(join(programs, 'server')) && existsSync(join(programs, 'sql'))
    ? [] : ['the official Temporal server']),
];

function postgresProgram(name: string): string {
  const version = readdirSync(postgresFolder).sort((a, b) => Number(b) - Number(a))[0] ?? '';
  return join(postgresFolder, version, 'bin', name);
}

const idOf = (flag: '-u' | '-g'): number =>
  Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }).trim());

/** Repeats a command until it succeeds. */
async function until(command: readonly string[]): Promise<void> {
  for (const end = performance.now() + startMsMax;;) {
    try {
      await runCommand(command);
      return;
    } catch (error) {
      if (performance.now() > end) throw error;
      await sleep(200);
    }
  }
}

/** PostgreSQL refuses to run as root: its own user, its own folder. */
async function startPostgres(lab: Lab): Promise<void> {
  const data = join(lab.directories.data, 'postgres');
  mkdirSync(data, { mode: 0o700 });
  chownSync(data, idOf('-u'), idOf('-g'));
  const asPostgres = [
    'setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups', '--inh-caps=-all'];
  await runCommand([
    ...asPostgres, postgresProgram('initdb'), '-D', data, '-U', 'temporal', '--auth', 'trust',
    '-E', 'UTF8', '--no-sync',
  ]);
  await lab.start({
    name: 'postgres', namespace: lab.plan.controlNamespace, ready: 'none', directory: '/',
    command: [
      ...asPostgres, postgresProgram('postgres'), '-D', data, '-p', String(ports.postgres),
      '-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${data}`,
    ],
  });
  await until(commandIn(lab.plan.controlNamespace, [
    postgresProgram('pg_isready'), '-h', '127.0.0.1', '-p', String(ports.postgres)]));
}

/** Databases and schema by Temporal's tool. */
async function applySchema(lab: Lab): Promise<void> {
  const tool = async (database: string, ...rest: string[]): Promise<void> => {
    await runCommand(commandIn(lab.plan.controlNamespace, [
      join(programs, 'sql'), '--plugin', 'postgres12', '--ep', '127.0.0.1',
      '--port', String(ports.postgres), '--user', 'temporal', '--db', database, ...rest,
    ]));
  };
  for (const [database, schema] of [
    ['temporal', 'postgresql/v12/temporal'], ['temporal_visibility', 'postgresql/v12/visibility'],
  ] as const) {
    await tool(database, 'create-database');
    await tool(database, 'setup-schema', '-v', '0.0');
    await tool(database, 'update-schema', '--schema-name', schema);
  }
}

const store = (databaseName: string): object => ({
  sql: {
    pluginName: 'postgres12', databaseName, connectAddr: `127.0.0.1:${ports.postgres}`,
    connectProtocol: 'tcp', user: 'temporal', password: '', maxConns: 10, maxIdleConns: 10,
    maxConnLifetime: '1h',
  },
});

const service = (grpcPort: number): object => ({
  rpc: {
    grpcPort, membershipPort: grpcPort - ports.membershipOffset, bindOnIP: controlAddress,
  },
});

/** The server's configuration (JSON is YAML). */
function serverConfig(tls: TlsMaterial, dynamicConfigPath: string): object {
  const server = {
    certFile: tls.certPath, keyFile: tls.keyPath, requireClientAuth: true,
    clientCaFiles: [tls.caPath],
  };
  const client = { serverName, rootCaFiles: [tls.caPath] };
  return {
    log: { stdout: true, level: 'error' },
    persistence: {
      defaultStore: 'main', visibilityStore: 'visibility', numHistoryShards: 4,
      datastores: { main: store('temporal'), visibility: store('temporal_visibility') },
    },
    global: {
      membership: { maxJoinDuration: '30s', broadcastAddress: controlAddress },
      tls: {
        frontend: { server, client },
        internode: { server, client },
        systemWorker: { certFile: tls.certPath, keyFile: tls.keyPath, client },
      },
    },
    services: {
      frontend: service(ports.frontend), matching: service(ports.matching),
      history: service(ports.history), worker: service(ports.worker),
    },
    clusterMetadata: {
      enableGlobalNamespace: false, failoverVersionIncrement: 10, masterClusterName: 'active',
      currentClusterName: 'active',
      clusterInformation: {
        active: {
          enabled: true, initialFailoverVersion: 1, rpcName: 'frontend',
          rpcAddress: `${controlAddress}:${ports.frontend}`,
        },
      },
    },
    dcRedirectionPolicy: { policy: 'noop' },
    dynamicConfigClient: { filepath: dynamicConfigPath, pollInterval: '10s' },
  };
}

/** The official server as a process of the lab; its configuration is written by `startCluster`. */
export const temporalServer = (lab: Lab): ProcessSpec => ({
  name: 'temporal-server', namespace: lab.plan.controlNamespace, ready: 'none',
  command: [
    join(programs, 'server'), '--config-file', join(lab.directories.data, 'temporal-server.yaml'),
    '--allow-no-auth', 'start',
  ],
});

/** `node infra/temporal/prepare.ts`, as an operator runs it; waits until the frontend answers. */
async function prepare(lab: Lab, papers: Papers, namespace: string): Promise<void> {
  const config = join(lab.directories.data, `prepare-${namespace}.json`);
  const { certPath, keyPath, caPath } = papers.of({ role: 'operator', name: 'lab' });
  writeFileSync(config, JSON.stringify({
    temporal: {
      address: `${controlAddress}:${ports.frontend}`, namespace, tls: { certPath, keyPath, caPath },
    },
  }));
  const said = await runCommand(commandIn(lab.plan.controlNamespace, [
    process.execPath, join(projectRoot, 'infra/temporal/prepare.ts'), '--config', config,
  ]), { timeoutMs: 150_000 });
  if (!said.includes('"msg":"prepared"')) throw new Error(`not prepared: ${said}`);
}

/** Starts database and server and prepares the namespaces; the lab's processes use the first. */
export const startCluster = (namespaces: readonly [string, ...string[]]) =>
  async (lab: Lab, papers: Papers): Promise<LabTemporal> => {
    await startPostgres(lab);
    await applySchema(lab);
    const dynamic = join(lab.directories.data, 'temporal-dynamic.yaml');
    writeFileSync(dynamic, '{}\n');
    writeFileSync(join(lab.directories.data, 'temporal-server.yaml'), JSON.stringify(
      serverConfig(papers.of({ role: 'temporal', name: 'front' }), dynamic), null, 1));
    await lab.start(temporalServer(lab));
    for (const namespace of namespaces) await prepare(lab, papers, namespace);
    const front = { address: controlAddress, port: ports.frontend };
    return {
      front, namespace: namespaces[0], ui: null, behindDoor: { ...front, asksCertificate: true },
    };
  };
