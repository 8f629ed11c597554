/**
 * Composes the product in a lab: certificates, Temporal's dev server with its mutual-TLS front, the
 * ledger, a control worker and a host runner per host; and doors by which this machine's loopback
 * reaches Temporal, its UI, what reads payloads for it, and the ledger. Everything is started as a
 * process, as on real hosts.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Client } from '@temporalio/client';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';
import type { Identity } from '../contracts/identity.ts';
import type { Ledger } from '../contracts/ownership.ts';
import { createAuthority, issueCertificate } from '../payloads/certificates.ts';
import type { TlsMaterial } from '../payloads/certificates.ts';
import { openLedger } from '../payloads/ledger-client.ts';
import { createPayloadKeys } from '../payloads/payload-keys.ts';
import { createRevocationList, openRevocationList } from '../payloads/revocation.ts';
import type { RevocationList } from '../payloads/revocation.ts';
import { connectTemporal, temporalTarget } from '../payloads/temporal-connection.ts';
import { freePort } from '../runners/free-port.ts';
import { loopback, openDoors } from './doors.ts';
import type { Endpoint } from './doors.ts';
import { cacheDirectory, projectRoot } from './guest-image.ts';
import type { QemuProgram } from './guest-image.ts';
import type { Lab } from './lab.ts';
import { controlAddress, storageAddress, vmBridge } from './network/plan.ts';
import type { LabHost } from './network/plan.ts';
import { startVolumeServer, volumeProgram, volumeServer } from './volumes.ts';
import type { LabVolume } from './volumes.ts';

/** Ports inside the lab; namespaces keep them apart from every other lab. */
export const labPorts = {
  temporal: 7233, temporalUi: 8233, temporalFront: 7443, ledger: 7300, peer: 7401, lanes: 7402,
  volumes: 7500, metrics: 9100, codec: 8081,
} as const;
/** Name of the Temporal frontend in its certificate, for who reaches it by a door. */
const frontName = 'temporal.lab';
/** Layer-2 segment that every host of the lab carries. */
export const labSegment = 'lab';
/** First of the users that VMMs run as; hosts get a thousand each, so that none share a user. */
const firstUid = 200_000;

/** What a composed lab offers to this machine; kept in the lab's record. */
export const labServices = z.strictObject({
  /** Temporal's frontend on loopback; `tls` null where no certificate is asked there. */
  temporal: temporalTarget,
  /** Temporal's UI on loopback; null where the cluster has none. */
  uiUrl: z.string().nullable(),
  /** Where a browser has payloads read for that UI; null without one. */
  codecUrl: z.string().nullable(),
  ledgerPort: z.int(),
  /** Configuration for the `novacron` command. */
  operatorConfigPath: z.string(),
  payloadKeysPath: z.string(),
  accelerator: z.enum(['tcg', 'kvm']),
});
export type LabServices = z.infer<typeof labServices>;

/** A Temporal that runs in the lab's control namespace. */
export interface LabTemporal {
  /** Where the lab's processes reach it, by mutual TLS. */
  readonly front: Endpoint;
  readonly namespace: string;
  /** What this machine is led to: the front itself, or a way past its TLS on its loopback. */
  readonly behindDoor: Endpoint & { readonly asksCertificate: boolean };
  readonly ui: Endpoint | null;
}

/** What composing needs. */
export interface ComposeOptions {
  readonly lab: Lab;
  readonly program: QemuProgram;
  /** Starts another Temporal than the dev server, and makes its namespace ready. */
  readonly startTemporal?: (
    lab: Lab, papers: Papers, codecUrl: string) => Promise<LabTemporal>;
  /** Default: one. More than one share the control queue, each with a certificate of its own. */
  readonly controlCount?: number;
  /** Profile of the processes' configurations. Default: lab. */
  readonly profile?: 'lab' | 'production';
  /** QEMU of each host, where they differ. */
  readonly programOf?: (host: LabHost) => QemuProgram;
  /** Default: TCG, which is the same on every machine. */
  readonly accelerator?: 'tcg' | 'kvm';
  /** Where hosts look for files that hold moved VMs before their first instruction. */
  readonly holdDirectory?: string;
  /** Length of leases, ms; default that of the product. Tests of what happens at their end wait. */
  readonly leaseTtlMs?: number;
  /** Volumes of a server of their own, empty at first; none starts none. */
  readonly volumes?: readonly LabVolume[];
  /** Of a process by its name, beside its own; default: nothing. */
  readonly environmentOf?: (process: string) => Readonly<Record<string, string>>;
  /** Called as each part is up, with what it is. */
  readonly onStep?: (step: string) => void;
}

/** Folder of one host's durable things. */
export const hostStateDirectory = (lab: Lab, host: LabHost): string =>
  join(lab.directories.data, host.name);
/** Folder of the images that VMs may be made from. */
export const imageDirectory = (lab: Lab): string => join(lab.directories.data, 'guest');

/** Socket at which a process of the lab lets its fault points be armed. */
export const faultSocketOf = (lab: Lab, process: string): string =>
  join(lab.directories.runtime, `${process}-faults.sock`);

const mainOf = (process: string): string => join(projectRoot, `runners/${process}/main.ts`);
const guardPath = join(projectRoot, 'native/target/release/novacron-guard');

/** The lab's authority and what it has issued. */
export interface Papers {
  readonly directory: string;
  readonly revokedPath: string;
  readonly payloadKeysPath: string;
  readonly of: (identity: Identity) => TlsMaterial;
}

/** Process names of the lab's control workers, which their certificates bear too. */
const controlNames = (count: number): string[] =>
  Array.from({ length: count }, (_, index) => (index === 0 ? 'control' : `control-${index + 1}`));

async function issuePapers(lab: Lab, controls: readonly string[]): Promise<Papers> {
  const directory = join(lab.directories.data, 'certificates');
  mkdirSync(directory, { recursive: true });
  const nowMs = Date.now();
  await createAuthority({ dir: directory, nowMs });
  const revokedPath = await createRevocationList({ dir: directory, nowMs });
  const payloadKeysPath = join(directory, 'payload-keys.json');
  await createPayloadKeys(payloadKeysPath, nowMs);
  const wanted: [Identity, string[]][] = [
    [{ role: 'temporal', name: 'front' }, [controlAddress, frontName]],
    [{ role: 'ledger', name: 'ledger' }, [controlAddress]],
    ...controls.map((name): [Identity, string[]] => [{ role: 'control', name }, [controlAddress]]),
    [{ role: 'volume', name: volumeServer.name }, [storageAddress]],
    [{ role: 'operator', name: 'lab' }, []],
    [{ role: 'lab', name: 'faults' }, []],
    ...lab.plan.hosts.map((host): [Identity, string[]] => [
      { role: 'host', name: host.name }, [host.managementAddress, host.migrationAddress]]),
  ];
  const materials = new Map<string, TlsMaterial>();
  for (const [identity, addresses] of wanted) {
    const { certPath, keyPath, caPath } = await issueCertificate(
      { dir: directory, identity, addresses, nowMs });
    materials.set(`${identity.role}/${identity.name}`, { certPath, keyPath, caPath });
  }
  const of = ({ role, name }: Identity): TlsMaterial => {
    const material = materials.get(`${role}/${name}`);
    if (material === undefined) throw new CodedError('internal', `no papers for ${role}/${name}`);
    return material;
  };
  return { directory, revokedPath, payloadKeysPath, of };
}

function writeConfig(lab: Lab, name: string, config: object): string {
  const path = join(lab.directories.data, `${name}.json`);
  writeFileSync(path, `${JSON.stringify({ version: 1, ...config }, null, 1)}\n`, { mode: 0o640 });
  return path;
}

const ledgerAddress = { address: controlAddress, port: labPorts.ledger };
/** How a process of the lab reaches Temporal. */
const temporalFor = ({ front, namespace }: LabTemporal, tls: TlsMaterial): object => ({
  address: `${front.address}:${front.port}`, namespace,
  tls: { certPath: tls.certPath, keyPath: tls.keyPath, caPath: tls.caPath },
});
const listenAt = (address: string, port: number): object => ({ address, port });

async function startLedger(
  { lab, leaseTtlMs, environmentOf }: ComposeOptions, papers: Papers,
): Promise<void> {
  const config = writeConfig(lab, 'ledger', {
    stateDir: join(lab.directories.data, 'ledger'), listen: ledgerAddress,
    tls: papers.of({ role: 'ledger', name: 'ledger' }), revokedPath: papers.revokedPath,
    metrics: listenAt(controlAddress, labPorts.metrics), profile: 'lab', leaseTtlMs,
  });
  mkdirSync(join(lab.directories.data, 'ledger'), { recursive: true, mode: 0o700 });
  await lab.start({
    name: 'ledger', namespace: lab.plan.controlNamespace, ready: 'line',
    command: [process.execPath, mainOf('ledger'), 'serve', '--config', config],
    environment: environmentOf?.('ledger') ?? {},
  });
}

/** Temporal's program: on PATH, or where the bootstrap has built it. */
const temporalPath = (): string => {
  const built = join(cacheDirectory, 'bin/temporal');
  return existsSync(built) ? built : 'temporal';
};

/** The dev server on the control namespace's loopback, and its TLS front on the lab's network. */
async function startDevServer(
  lab: Lab, papers: Papers, codecUrl: string,
): Promise<LabTemporal> {
  const front = { address: controlAddress, port: labPorts.temporalFront };
  const config = writeConfig(lab, 'temporal', {
    temporalPath: temporalPath(), databasePath: join(lab.directories.data, 'temporal.db'),
    namespace: 'default', port: labPorts.temporal, uiPort: labPorts.temporalUi,
    codecEndpoint: codecUrl,
    front: {
      listen: front,
      tls: papers.of({ role: 'temporal', name: 'front' }), revokedPath: papers.revokedPath,
    },
  });
  await lab.start({
    name: 'temporal', namespace: lab.plan.controlNamespace, ready: 'line',
    command: [
      process.execPath, join(projectRoot, 'infra/temporal/dev-server.ts'), '--config', config],
  });
  return {
    front, namespace: 'default', ui: { address: loopback, port: labPorts.temporalUi },
    behindDoor: { address: loopback, port: labPorts.temporal, asksCertificate: false },
  };
}

/** What every worker is made from. */
interface WorkerParts {
  readonly options: ComposeOptions;
  readonly papers: Papers;
  readonly temporal: LabTemporal;
}

async function startControl(
  { options: { lab, environmentOf, profile = 'lab' }, papers, temporal }: WorkerParts,
  { name, metricsPort, uiPort }: {
    readonly name: string; readonly metricsPort: number;
    /** Of the UI that this worker reads payloads for; null for none. */
    readonly uiPort: number | null;
  },
): Promise<void> {
  const tls = papers.of({ role: 'control', name });
  const config = writeConfig(lab, name, {
    tls, revokedPath: papers.revokedPath, payloadKeysPath: papers.payloadKeysPath,
    temporal: temporalFor(temporal, tls), ledger: ledgerAddress, buildId: 'lab',
    codec: uiPort === null ? null : {
      listen: listenAt(loopback, labPorts.codec),
      origins: [loopback, 'localhost'].map((host) => `http://${host}:${uiPort}`),
    },
    metrics: listenAt(controlAddress, metricsPort), profile,
    faultSocket: profile === 'lab' ? faultSocketOf(lab, name) : null,
  });
  await lab.start({
    name, namespace: lab.plan.controlNamespace, ready: 'line',
    command: [process.execPath, mainOf('control'), '--config', config],
    environment: environmentOf?.(name) ?? {},
  });
}

async function startHost(
  { options, papers, temporal }: WorkerParts, host: LabHost,
): Promise<void> {
  const { lab, profile = 'lab' } = options;
  const program = options.programOf?.(host) ?? options.program;
  if (!existsSync(guardPath)) {
    throw new CodedError('input/invalid', `${guardPath} is missing: run \`npm run setup\``);
  }
  const tls = papers.of({ role: 'host', name: host.name });
  const config = writeConfig(lab, `host-${host.name}`, {
    name: host.name, profile,
    stateDir: hostStateDirectory(lab, host),
    runtimeDir: join(lab.directories.runtime, host.name),
    memoryDir: join(lab.directories.memory, host.name),
    temporal: temporalFor(temporal, tls), ledger: ledgerAddress,
    tls, revokedPath: papers.revokedPath, payloadKeysPath: papers.payloadKeysPath,
    peer: listenAt(host.migrationAddress, labPorts.peer),
    lanes: listenAt(host.migrationAddress, labPorts.lanes),
    vmBridge, segments: [labSegment],
    qemu: { command: program.command, environment: program.environment },
    qemuImg: program.qemuImg ?? ['qemu-img'],
    imageDirectories: [imageDirectory(lab)],
    guardPath, volumePath: volumeProgram, accelerator: options.accelerator ?? 'tcg',
    uidBase: firstUid + host.number * 1_000,
    metrics: listenAt(host.managementAddress, labPorts.metrics),
    holdDirectory: options.holdDirectory ?? null,
    faultSocket: profile === 'lab' ? faultSocketOf(lab, `host-${host.name}`) : null,
  });
  await lab.start({
    name: `host-${host.name}`, namespace: host.namespace, ready: 'line',
    command: [process.execPath, mainOf('host'), '--config', config],
    environment: options.environmentOf?.(`host-${host.name}`) ?? {},
  });
}

function writeOperatorConfig(
  lab: Lab, papers: Papers, services: Omit<LabServices, 'operatorConfigPath'>,
): string {
  return writeConfig(lab, 'operator', {
    temporal: { ...services.temporal, uiUrl: services.uiUrl },
    payloadKeysPath: papers.payloadKeysPath,
    ledger: { address: '127.0.0.1', port: services.ledgerPort },
    tls: papers.of({ role: 'operator', name: 'lab' }),
    revokedPath: papers.revokedPath, certificatesDir: papers.directory,
    hosts: Object.fromEntries(lab.plan.hosts.map((host) => [
      host.name, { localSocket: join(lab.directories.runtime, host.name, 'host.sock') }])),
  });
}

/** Starts everything and answers how this machine reaches it. */
export async function composeLab(options: ComposeOptions): Promise<LabServices> {
  const { lab, onStep = () => undefined, startTemporal = startDevServer } = options;
  const controls = controlNames(options.controlCount ?? 1);
  const papers = await issuePapers(lab, controls);
  const operator = papers.of({ role: 'operator', name: 'lab' });
  onStep('certificates');
  const codecPort = await freePort();
  const codecUrl = `http://${loopback}:${codecPort}`;
  const [temporal] = await Promise.all([
    startTemporal(lab, papers, codecUrl),
    startLedger(options, papers).then(() => onStep('ledger')),
    startVolumeServer(lab, {
      volumes: options.volumes ?? [], revokedPath: papers.revokedPath,
      tls: papers.of({ role: 'volume', name: volumeServer.name }),
    }),
  ]);
  onStep('Temporal');
  const [ledgerPort = 0, temporalPort = 0, uiPort] = await openDoors(lab, [
    ledgerAddress, temporal.behindDoor,
    ...(temporal.ui === null ? [] : [temporal.ui, {
      address: loopback, port: labPorts.codec, outsidePort: codecPort,
      papers: { tls: operator, revokedPath: papers.revokedPath },
    }]),
  ]);
  const partial = {
    temporal: {
      address: `127.0.0.1:${temporalPort}`, namespace: temporal.namespace,
      tls: temporal.behindDoor.asksCertificate ? { ...operator, serverName: frontName } : null,
    },
    uiUrl: uiPort === undefined ? null : `http://${loopback}:${uiPort}`,
    codecUrl: uiPort === undefined ? null : codecUrl,
    ledgerPort, payloadKeysPath: papers.payloadKeysPath,
    accelerator: options.accelerator ?? ('tcg' as const),
  };
  const parts = { options, papers, temporal };
  await Promise.all([
    ...controls.map(async (name, index) => {
      await startControl(parts, {
        name, metricsPort: labPorts.metrics + 1 + index,
        uiPort: index === 0 ? uiPort ?? null : null,
      });
      onStep(index === 0 ? 'control worker' : `control worker ${index + 1}`);
    }),
    ...lab.plan.hosts.map(async (host) => {
      await startHost(parts, host);
      onStep(`host ${host.name}`);
    }),
  ]);
  const services = {
    ...partial, operatorConfigPath: writeOperatorConfig(lab, papers, partial),
  };
  lab.note('services', services);
  return services;
}

/** How this machine reaches a lab that was composed before; null when it was not. */
export function servicesOf(lab: Lab): LabServices | null {
  const parsed = labServices.safeParse(lab.notes['services']);
  return parsed.success ? parsed.data : null;
}

/** A Temporal client for the lab's server. */
export async function connectLabTemporal(services: LabServices): Promise<Client> {
  return await connectTemporal(services.temporal, services.payloadKeysPath);
}

/** A certificate that the lab has issued, with the list of those taken back. */
export function papersOf(lab: Lab, { role, name }: Identity): {
  readonly material: TlsMaterial; readonly revoked: RevocationList;
} {
  const directory = join(lab.directories.data, 'certificates');
  const caPath = join(directory, 'ca.pem');
  return {
    material: {
      certPath: join(directory, `${role}-${name}.pem`),
      keyPath: join(directory, `${role}-${name}-key.pem`), caPath,
    },
    revoked: openRevocationList({ path: join(directory, 'revoked.json'), caPath }),
  };
}

/** A ledger client with the lab operator's certificate. */
export async function connectLabLedger(lab: Lab, services: LabServices): Promise<Ledger> {
  const { material, revoked } = papersOf(lab, { role: 'operator', name: 'lab' });
  return await openLedger({
    address: '127.0.0.1', port: services.ledgerPort, tls: material, revoked });
}
