/**
 * A composed lab with small guests for end-to-end tests of moves: makes them, moves them, and says
 * whether guest, ledger and hosts are as they must be afterwards. What is moved how is the tests'.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import { expect } from 'vitest';
import { CodedError, readFailure } from '../../contracts/failures.ts';
import type { FailureCode } from '../../contracts/failures.ts';
import { hostName, requestId, vmName } from '../../contracts/identity.ts';
import type { MigrationId, VmName } from '../../contracts/identity.ts';
import { defaultPolicy } from '../../contracts/migration.ts';
import type {
  MigrationOutcome, MigrationPolicy, MigrationStatus, SessionCommand,
} from '../../contracts/migration.ts';
import type { Ledger, VmEntry } from '../../contracts/ownership.ts';
import type { DiskSpec, VmSpec } from '../../contracts/runner.ts';
import { mib } from '../../contracts/units.ts';
import { specOf } from '../../lab/bench/engines/direct.ts';
import { guestDamage, loadRequest, meetGuest } from '../../lab/bench/measure.ts';
import type { GuestLoad } from '../../lab/bench/measure.ts';
import type { OutsideClient } from '../../lab/client/outside-client.ts';
import type { WitnessStatus } from '../../lab/client/witness-line.ts';
import { runCommand } from '../../lab/command.ts';
import {
  composeLab, connectLabLedger, connectLabTemporal, hostStateDirectory, imageDirectory,
} from '../../lab/compose.ts';
import type { ComposeOptions, LabServices } from '../../lab/compose.ts';
import { placeGuestImage, systemQemuProgram } from '../../lab/guest-image.ts';
import type { GuestImage } from '../../lab/guest-image.ts';
import { Lab, labDirectories } from '../../lab/lab.ts';
import { namespaceExists } from '../../lab/network/network.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { processesOfLab } from '../../lab/processes.ts';
import type { LabProcess } from '../../lab/processes.ts';
import { sharedDisk } from '../../lab/volumes.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import {
  commandMigration, migrationOutcome, startMigration, viewMigration,
} from '../../payloads/migration-client.ts';
import type { MigrationView } from '../../payloads/migration-client.ts';
import { tapName } from '../../runners/hypervisor/tap.ts';
import { vmPaths } from '../../runners/hypervisor/vm-directory.ts';

/** Composing takes 15 s and a boot 10 s on a quiet machine; several times that on a busy one. */
export const stageMsMax = 240_000;
/** Between two looks at something that is waited for. */
const lookEveryMs = 100;

/** Light load: the guest lives, and every round converges. */
export const lightLoad: GuestLoad = {
  dirtyBytesPerSecond: 500_000, workingSetBytes: 4 * mib, order: 'random', pages: 'partial',
};

/** Tries until `look` answers something; fails with what was waited for. */
export async function until<T>(
  what: string, look: () => Promise<T | null> | T | null, timeoutMs: number,
): Promise<T> {
  for (const end = performance.now() + timeoutMs; performance.now() < end;) {
    const seen = await look();
    if (seen !== null) return seen;
    await sleep(lookEveryMs);
  }
  throw new Error(`not within ${timeoutMs} ms: ${what}`);
}

/** The code of the failure that a promise rejects with; an error when it does not reject. */
export async function failureCodeOf(work: Promise<unknown>): Promise<FailureCode> {
  try {
    await work;
  } catch (error) {
    const failure = readFailure(error);
    if (failure === null) throw error;
    return failure.code;
  }
  throw new Error('it should have been refused');
}

/** The completed outcome without warnings; any other fails with all that it says. */
export async function completed(
  outcome: Promise<MigrationOutcome>,
): Promise<Extract<MigrationOutcome, { kind: 'completed' }>> {
  const ended = await outcome;
  if (ended.kind !== 'completed') throw new Error(`not completed: ${JSON.stringify(ended)}`);
  expect(ended.warnings).toEqual([]);
  return ended;
}

/** What a guest is made of. */
export interface GuestWish {
  readonly name: string;
  /** Last octet of its address on the VM segment; unique in the lab. */
  readonly octet: number;
  readonly vcpuCount?: number;
  readonly memoryMib?: number;
  /** Data that does not compress in the guest's memory, MiB. */
  readonly dataMib?: number;
  readonly disk?: Pick<DiskSpec, 'format' | 'sizeBytes' | 'sourceImage'>;
  /** Its disk, on the lab's volume server, see `StageWish.volumes`. */
  readonly volume?: { readonly name: string; readonly sizeBytes: number };
  /** More words for its kernel's command line. */
  readonly commandLine?: string;
  readonly host?: number;
  readonly machineType?: string;
  readonly failover?: VmSpec['failover'];
  /** How often its client outside writes and asks, ms; default: as fast as for one guest. */
  readonly outsideEveryMs?: number;
}

/** What a stage is made of. */
export interface StageWish
  extends Pick<
    ComposeOptions,
    'volumes' | 'controlCount' | 'leaseTtlMs' | 'profile' | 'startTemporal' | 'programOf'
    | 'holdDirectory'
  > {
  readonly hostCount: number;
  /** Done before the first process of the product is started. */
  readonly prepare?: (lab: Lab) => Promise<void>;
}

interface WantedMove {
  readonly vm: VmName;
  readonly target: string;
  readonly policy?: Partial<MigrationPolicy>;
  readonly request?: ReturnType<typeof requestId>;
}

/** A move under way. */
export interface Move {
  readonly migration: MigrationId;
  readonly outcome: Promise<MigrationOutcome>;
}

/** The lab with the product in it. */
export class MoveStage {
  readonly lab: Lab;
  readonly services: LabServices;
  readonly client: Client;
  ledger: Ledger;
  readonly image: GuestImage;
  readonly #guests: StageGuest[] = [];
  #requests = 0;

  private constructor(fields: Pick<MoveStage, 'lab' | 'services' | 'client' | 'ledger' | 'image'>) {
    this.lab = fields.lab;
    this.services = fields.services;
    this.client = fields.client;
    this.ledger = fields.ledger;
    this.image = fields.image;
  }

  static async raise({ hostCount, prepare, ...more }: StageWish): Promise<MoveStage> {
    const lab = await Lab.raise({ hostCount });
    try {
      await prepare?.(lab);
      const image = placeGuestImage(imageDirectory(lab));
      const services = await composeLab({ lab, program: systemQemuProgram, ...more });
      const client = await connectLabTemporal(services);
      const ledger = await connectLabLedger(lab, services);
      return new MoveStage({ lab, services, client, ledger, image });
    } catch (error) {
      await lab.lower();
      throw error;
    }
  }

  /** A request id that was not used before in this lab. */
  freshRequest(): ReturnType<typeof requestId> {
    this.#requests += 1;
    return requestId(`t${this.#requests}`);
  }

  /** The product's spec of a guest. */
  spec(wish: GuestWish): VmSpec {
    const address = `198.18.1.${wish.octet}/24`;
    const { disk } = wish;
    const spec = specOf({
      vm: vmName(wish.name), image: this.image,
      guest: {
        vcpuCount: wish.vcpuCount ?? 1, memoryBytes: (wish.memoryMib ?? 192) * mib, address,
        macAddress: `52:4e:43:00:02:${wish.octet.toString(16).padStart(2, '0')}`,
        // What its boot frees becomes zero pages, which cost no bytes: a short round 0.
        commandLine: `${this.image.kernelCommandLine} init_on_free=1 novacron.ip=${address}`
          + ' novacron.pattern=16M'
          + ` novacron.data=${wish.dataMib ?? 0}M novacron.compressible=0 ${wish.commandLine ?? ''}`,
        diskBytes: disk?.sizeBytes ?? 0, ...(disk === undefined ? {} : { disk }),
      },
    });
    const { volume } = wish;
    return {
      ...spec, machineType: wish.machineType ?? spec.machineType,
      disks: volume === undefined ? spec.disks : [sharedDisk(volume)],
      failover: wish.failover ?? spec.failover,
    };
  }

  /** Creates a guest and waits until it answers from outside. */
  async guest(wish: GuestWish): Promise<StageGuest> {
    const { outcome } = await runLifecycle(this.client, {
      step: 'create',
      input: {
        version: 1, spec: this.spec(wish), host: hostName(this.lab.host(wish.host ?? 1).name),
        request: this.freshRequest(), start: true,
      },
    });
    if (outcome.kind !== 'completed') {
      throw new Error(`the guest was not made: ${JSON.stringify(outcome)}`);
    }
    const address = `198.18.1.${wish.octet}`;
    const outside = await meetGuest(this.lab, address, wish.outsideEveryMs ?? null);
    const guest = new StageGuest({ stage: this, vm: vmName(wish.name), address, outside });
    this.#guests.push(guest);
    return guest;
  }

  /**
   * Starts a move of any name to any name; the outcome is awaited by whoever wants it. With consent
   * to post-copy unless the policy says otherwise: on a narrow link even a quiet guest needs it.
   */
  async move(options: WantedMove): Promise<Move> {
    const migration = await this.begin(options);
    const outcome = this.outcome(migration);
    outcome.catch(() => undefined);
    return { migration, outcome };
  }

  /** Starts a move that nobody waits for. */
  async begin(options: WantedMove): Promise<MigrationId> {
    const request = options.request ?? this.freshRequest();
    const { migration } = await startMigration(this.client, {
      version: 1, vm: options.vm, target: hostName(options.target), request,
      policy: {
        ...defaultPolicy, postCopy: 'when-needed', deadlineMs: 120_000, ...options.policy,
      },
    });
    return migration;
  }

  outcome(migration: MigrationId): Move['outcome'] {
    return migrationOutcome(this.client, migration);
  }

  async entry(vm: VmName): Promise<VmEntry> {
    const entry = await this.ledger.readVm(vm);
    if (entry === null) throw new Error(`${vm} is not in the ledger`);
    return entry;
  }

  view(migration: MigrationId): Promise<MigrationView> {
    return viewMigration(this.client, migration);
  }

  command(migration: MigrationId, command: SessionCommand): Promise<MigrationStatus> {
    return commandMigration(this.client, migration, command);
  }

  /** Waits until the move copies memory and has sent `bytes`. */
  async untilSent(migration: MigrationId, bytes = mib): Promise<MigrationView> {
    return await until(`${migration} sends`, async () => {
      const view = await this.view(migration);
      if (view.status.outcome !== null) {
        throw new Error(`it ended before: ${JSON.stringify(view.status.outcome)}`);
      }
      const { progress } = view.status;
      return progress?.phase === 'memory' && progress.bytesOnWire >= bytes ? view : null;
    }, 30_000);
  }

  /** Waits until the ledger says that nobody moves the VM. */
  async untilOwned(vm: VmName, timeoutMs: number): Promise<VmEntry> {
    return await until(`${vm} is owned by one host`, async () => {
      const entry = await this.entry(vm);
      return entry.phase === 'owned' ? entry : null;
    }, timeoutMs);
  }

  /** Cancels the move of a VM that a test left open, if there is one, and waits for its end. */
  async endOpenMove(vm: VmName): Promise<void> {
    const { phase, migration } = await this.entry(vm);
    if (phase === 'owned' || migration === null) return;
    await this.command(migration, { kind: 'cancel', by: 'the end of a test' })
      .catch(() => undefined);
    await this.untilOwned(vm, 60_000);
  }

  process(name: string): LabProcess {
    const [script = ''] = name.split('-');
    const namespace = script === 'host'
      ? this.lab.host(Number(name.slice('host-h'.length))).namespace
      : this.lab.plan.controlNamespace;
    const config = join(this.lab.directories.data, `${name}.json`);
    const found = this.lab.process({
      name, namespace, ready: 'line',
      command: [process.execPath, join(import.meta.dirname, `../../runners/${script}/main.ts`),
        ...(name === 'ledger' ? ['serve'] : []), '--config', config],
    });
    if (found === null) throw new Error(`${name} does not run`);
    return found;
  }

  /** kill -9, then the same process again; answers when it is ready. */
  async killAndRestart(name: string): Promise<void> {
    const process = this.process(name);
    await process.kill();
    await this.restart(process);
  }

  /** Starts a process again that was killed; answers when it is ready. */
  async restart({ spec }: LabProcess): Promise<void> {
    await this.lab.start(spec);
    if (spec.name !== 'ledger') return;
    await this.ledger.close().catch(() => undefined);
    this.ledger = await connectLabLedger(this.lab, this.services);
  }

  /** Everything of the VM that lies or runs on a host. */
  async remainsOn(host: LabHost, vm: VmName): Promise<string[]> {
    const remains: string[] = [];
    const { directory } = vmPaths(join(hostStateDirectory(this.lab, host), 'vms'), vm);
    if (existsSync(directory)) remains.push(directory);
    const memory = join(this.lab.directories.memory, host.name);
    if (existsSync(memory)) {
      remains.push(...readdirSync(memory).filter((name) => name.startsWith(`${vm}.`)));
    }
    const tap = tapName({ host: hostName(host.name), vm, nic: 'n0' });
    const links = await runCommand(['ip', '-n', host.namespace, '-o', 'link', 'show']);
    if (links.includes(`${tap}:`)) remains.push(tap);
    for (const { pid } of processesOfLab(this.lab.id)) {
      const words = commandLineOf(pid);
      if (words.some((word) => word.includes(`${directory}/`))) remains.push(`${pid} ${words[0]}`);
    }
    return remains;
  }

  /** Nothing of the VM on that host, at the latest after its runner's sweep. */
  async expectClean(host: LabHost, vm: VmName, timeoutMs = 10_000): Promise<void> {
    let remains: string[] = [];
    await until('a clean host', async () => {
      remains = await this.remainsOn(host, vm);
      return remains.length === 0 ? true : null;
    }, timeoutMs).catch(() => undefined);
    expect(remains, `left of ${vm} on ${host.name}`).toEqual([]);
  }

  /** Takes all of it down and expects that nothing is left. */
  async lower(): Promise<void> {
    for (const guest of this.#guests) await guest.outside.close();
    await this.ledger.close();
    await this.client.connection.close();
    await this.lab.lower();
    expect(this.lab.plan.namespaces.filter(namespaceExists)).toEqual([]);
    expect(processesOfLab(this.lab.id)).toEqual([]);
    expect(Object.values(labDirectories(this.lab.id)).filter(existsSync)).toEqual([]);
  }
}

function commandLineOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
  } catch {
    return [];
  }
}

/** What is known of a guest before something is done to it. */
export interface GuestBefore {
  readonly status: WitnessStatus;
  readonly entry: VmEntry;
}

/** A guest of the stage with its client outside, whose connections stay through all its moves. */
export class StageGuest {
  readonly stage: MoveStage;
  readonly vm: VmName;
  readonly address: string;
  readonly outside: OutsideClient;

  constructor(fields: Pick<StageGuest, 'stage' | 'vm' | 'address' | 'outside'>) {
    this.stage = fields.stage;
    this.vm = fields.vm;
    this.address = fields.address;
    this.outside = fields.outside;
  }

  /** Gives it load and outside writes, and notes how it is. */
  async begin(load: GuestLoad = lightLoad): Promise<GuestBefore> {
    await this.outside.witness(loadRequest(load));
    await this.outside.witness({ op: 'start' });
    await this.outside.startWriting();
    await sleep(300);
    return {
      status: await this.outside.witness({ op: 'status' }), entry: await this.stage.entry(this.vm),
    };
  }

  /** Host that the ledger gives it to. */
  async host(): Promise<LabHost> {
    const { owner } = await this.stage.entry(this.vm);
    const host = this.stage.lab.plan.hosts.find(({ name }) => name === owner);
    if (host === undefined) throw new Error(`${this.vm} belongs to ${owner}`);
    return host;
  }

  /** The other one of the first two hosts. */
  async otherHost(): Promise<LabHost> {
    return this.stage.lab.host((await this.host()).number === 1 ? 2 : 1);
  }

  /** The same guest, whole: memory, counter, acknowledged writes, connections. */
  async expectWhole(before: GuestBefore): Promise<void> {
    await sleep(300);
    await this.outside.stopWriting();
    await this.outside.witness({ op: 'stop' });
    await this.outside.witness({ op: 'set', diskRateBytesPerSecond: 0 });
    const after = await this.outside.witness({ op: 'verify' });
    const readBack = await this.outside.readBack();
    expect(guestDamage({ before: before.status, after, readBack })).toBeNull();
  }

  /** Whole, owned by `host` and nowhere else, at the expected distance of epochs. */
  async expectAt(host: LabHost, before: GuestBefore, epochsLater: number): Promise<void> {
    const entry = await this.stage.untilOwned(this.vm, 10_000);
    expect(entry).toMatchObject({ owner: host.name, phase: 'owned', desired: 'running' });
    expect(entry.epoch - before.entry.epoch).toBe(epochsLater);
    await this.expectWhole(before);
    for (const other of this.stage.lab.plan.hosts) {
      if (other.name !== host.name) await this.stage.expectClean(other, this.vm);
    }
  }

  /** A whole move under a load, with all that has to be true afterwards. */
  async moveAndExpect(options: {
    readonly load?: GuestLoad; readonly policy?: Partial<MigrationPolicy>;
    /** Absent: the other one of the first two hosts. */
    readonly target?: LabHost;
  } = {}): Promise<Extract<MigrationOutcome, { kind: 'completed' }>> {
    const before = await this.begin(options.load);
    const target = options.target ?? await this.otherHost();
    const move = await this.stage.move({
      vm: this.vm, target: target.name, ...(options.policy === undefined ? {} : {
        policy: options.policy }),
    });
    const outcome = await completed(move.outcome);
    await this.expectAt(target, before, 1);
    return outcome;
  }

  /** Ends it and its files. */
  async discard(): Promise<void> {
    const { client } = this.stage;
    const input = (): { version: 1; vm: VmName; request: ReturnType<typeof requestId> } =>
      ({ version: 1, vm: this.vm, request: this.stage.freshRequest() });
    await this.outside.close();
    for (const request of [
      { step: 'stop', input: { ...input(), graceMs: 0 } }, { step: 'delete', input: input() },
    ] as const) {
      const { outcome } = await runLifecycle(client, request);
      if (outcome.kind !== 'completed') throw new CodedError('internal', JSON.stringify(outcome));
    }
  }
}

