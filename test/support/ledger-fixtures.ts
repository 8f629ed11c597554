/** Builders for ledger tests: hosts with real keys, specs, events, and a served ledger. */
import type { KeyObject } from 'node:crypto';
import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { hostName, incarnation, migrationId, requestId, vmName } from '../../contracts/identity.ts';
import type { HostName, Identity, Incarnation, MigrationId } from '../../contracts/identity.ts';
import type {
  Ledger, LedgerEvent, TransferRecord, Verdict, VmEntry,
} from '../../contracts/ownership.ts';
import type { HostFacts, VmSpec } from '../../contracts/runner.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import type { IssuedFiles } from '../../payloads/certificates.ts';
import { createRevocationList, openRevocationList } from '../../payloads/revocation.ts';
import type { RevocationList } from '../../payloads/revocation.ts';
import { directoryStorage } from '../../runners/group/ledger-log/log-storage.ts';
import { signTransferRecord } from '../../runners/group/ownership/signing.ts';
import { connectLedger } from '../../payloads/ledger-client.ts';
import { LedgerCore } from '../../runners/ledger/core.ts';
import { serveLedger } from '../../runners/ledger/server.ts';
import type { LedgerServer } from '../../runners/ledger/server.ts';

export const silent = pino({ level: 'silent' });
export const vm = vmName('vm-1');
export const hostA = hostName('host-a');
export const hostB = hostName('host-b');
export const control: Identity = { role: 'control', name: 'control' };
export const asHost = (name: HostName): Identity => ({ role: 'host', name });
export const moveId = (request: string): MigrationId => migrationId(vm, requestId(request));
export const vmm = (digit: number): Incarnation => incarnation(String(digit % 10).repeat(32));

export const facts = (name: HostName): HostFacts => ({
  version: 1, name, migrationAddress: '198.18.2.11', peerPort: 7000, lanePort: 7001,
  segments: ['blue'], accelerator: 'tcg', qemuVersion: '7.2.0', machineTypes: ['pc-i440fx-7.2'],
  kernelRelease: '6.12', memoryBytes: 1 << 30, diskFreeBytes: 1 << 30, cpuFlags: [], features: [],
});
export const spec = (over: Partial<VmSpec> = {}): VmSpec => ({
  version: 1, name: vm, vcpuCount: 1, memoryBytes: 256 << 20, machineType: 'pc-i440fx-7.2',
  cpuModel: 'qemu64', nics: [], failover: 'none',
  disks: [{ name: 'root', format: 'raw', sizeBytes: 1 << 20, sourceImage: null, volume: 'local' }],
  boot: { kind: 'kernel', kernel: '/k', initrd: null, commandLine: 'console=ttyS0' },
  ...over,
});

/** Key pair of a host made once a process: generating them is what costs. */
const keys = new Map<string, { readonly privateKey: KeyObject; readonly publicKeyPem: string }>();
export function hostKey(name: string) {
  const known = keys.get(name);
  if (known !== undefined) return known;
  const pair = generateKeyPairSync('ed25519');
  const made = {
    privateKey: pair.privateKey,
    publicKeyPem: pair.publicKey.export({ type: 'spki', format: 'pem' }).toString(),
  };
  keys.set(name, made);
  return made;
}

export const record = (
  over: Partial<TransferRecord> & { readonly migration: MigrationId; readonly epoch: number },
  signer: KeyObject,
): TransferRecord => signTransferRecord({
  version: 1, digest: 'd1', missingDigest: '', missingPageCount: 0, ioSequence: [7], ...over,
}, signer);

export const joinHost = (name: HostName): LedgerEvent =>
  ({ kind: 'join-host', facts: facts(name), publicKeyPem: hostKey(name).publicKeyPem });

/** One ledger as several identities see it. */
export interface LedgerSeats {
  readonly as: (identity: Identity) => Ledger;
}

export async function must(verdicts: Promise<readonly Verdict[]>): Promise<VmEntry | null> {
  const all = await verdicts;
  const last = all.at(-1);
  if (last === undefined || !last.accepted) throw new Error(`refused: ${JSON.stringify(last)}`);
  return last.entry;
}

/** Two hosts and one running VM on the first. */
export async function runningVm(seats: LedgerSeats, over: Partial<VmSpec> = {}): Promise<void> {
  for (const name of [hostA, hostB]) await must(seats.as(asHost(name)).propose([joinHost(name)]));
  await must(seats.as(control).propose([
    { kind: 'create', vm, host: hostA, spec: spec(over) },
    { kind: 'desire', vm, epoch: 1, desired: 'running' },
  ]));
  await must(seats.as(asHost(hostA)).propose([
    { kind: 'started', vm, epoch: 1, incarnation: vmm(1), imageStamp: null },
  ]));
}

/** A ledger behind TLS with certificates of its own; everything is gone after `close`. */
export interface ServedLedger extends LedgerSeats {
  readonly dir: string;
  readonly core: LedgerCore;
  readonly server: LedgerServer;
  readonly files: (identity: Identity) => IssuedFiles;
  readonly revoked: RevocationList;
  restart(): Promise<void>;
  stop(): Promise<void>;
  close(): Promise<void>;
}

export async function servedLedger(identities: readonly Identity[]): Promise<ServedLedger> {
  const dir = await mkdtemp(join(tmpdir(), 'novacron-ledger-'));
  const caDir = join(dir, 'ca');
  const nowMs = Date.now();
  await createAuthority({ dir: caDir, nowMs });
  const path = await createRevocationList({ dir: caDir, nowMs });
  const issued = new Map<string, IssuedFiles>();
  const ledgerIdentity: Identity = { role: 'ledger', name: 'ledger' };
  for (const identity of [...identities, ledgerIdentity]) {
    const files = await issueCertificate({ dir: caDir, identity, addresses: [], nowMs });
    issued.set(`${identity.role}/${identity.name}`, files);
    if (identity.role === 'host') {
      const privateKey = createPrivateKey(await readFile(files.keyPath, 'utf8'));
      const publicKeyPem = createPublicKey(privateKey)
        .export({ type: 'spki', format: 'pem' }).toString();
      keys.set(identity.name, { privateKey, publicKeyPem });
    }
  }
  const filesOf = (identity: Identity): IssuedFiles => {
    const files = issued.get(`${identity.role}/${identity.name}`);
    if (files === undefined) throw new Error(`no certificate for ${identity.role}/${identity.name}`);
    return files;
  };
  const tls = filesOf(ledgerIdentity);
  const revoked = openRevocationList({ path, caPath: tls.caPath });
  const start = async (port: number) => {
    const core = await LedgerCore.open({
      storage: await directoryStorage(join(dir, 'state')), logger: silent,
    });
    const server = await serveLedger({
      core, tls, revoked, logger: silent, address: '127.0.0.1', port,
    });
    return { core, server };
  };
  let running = await start(0);
  let up = true;
  const clients = new Map<string, Ledger>();
  const { port } = running.server;
  const stop = async () => {
    if (!up) return;
    up = false;
    await running.server.close();
    await running.core.close();
  };
  return {
    dir, revoked, files: filesOf, stop,
    get core() { return running.core; },
    get server() { return running.server; },
    as: (identity) => {
      const key = `${identity.role}/${identity.name}`;
      const client = clients.get(key) ?? connectLedger({
        address: '127.0.0.1', port, tls: filesOf(identity), revoked, requestTimeoutMs: 5_000,
      });
      clients.set(key, client);
      return client;
    },
    restart: async () => {
      await stop();
      running = await start(port);
      up = true;
    },
    close: async () => {
      for (const client of clients.values()) await client.close();
      await stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}
