/**
 * The lab of a campaign: two hosts with the product, and guests that move between them. Knows how
 * each victim is found, hurt and brought back, as a system would do it; what is hurt when is
 * run.ts's.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Client } from '@temporalio/client';
import { CodedError } from '../../contracts/failures.ts';
import { hostName, requestId, vmName } from '../../contracts/identity.ts';
import type { RequestId, VmName } from '../../contracts/identity.ts';
import type { Ledger, VmEntry } from '../../contracts/ownership.ts';
import { mib } from '../../contracts/units.ts';
import { armFaultPoint } from '../../payloads/fault-points-client.ts';
import type { ArmedPoint } from '../../payloads/fault-points-client.ts';
import type { FaultPoint } from '../../contracts/fault-points.ts';
import { openLedger } from '../../payloads/ledger-client.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { tapName } from '../../runners/hypervisor/tap.ts';
import { vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { specOf } from '../bench/engines/direct.ts';
import { OutsideClient } from '../client/outside-client.ts';
import { runCommand } from '../command.ts';
import {
  composeLab, connectLabLedger, connectLabTemporal, faultSocketOf, hostStateDirectory,
  imageDirectory, papersOf,
} from '../compose.ts';
import { placeGuestImage, systemQemuProgram } from '../guest-image.ts';
import type { GuestImage } from '../guest-image.ts';
import { Lab } from '../lab.ts';
import type { LabHost } from '../network/plan.ts';
import { processesOfLab } from '../processes.ts';
import { sharedDisk, volumeProcesses } from '../volumes.ts';
import type { LabVolume } from '../volumes.ts';
import { holderOf } from './cells.ts';
import type { GuestKind, Victim } from './cells.ts';
import { ProcessClock } from './clocks.ts';
import { mountSmallDisks } from './small-disks.ts';
import { until } from './waiting.ts';
import { vmmPidIn } from './watch.ts';

/** Small, so that a run is short; Redis in it writes every acknowledged write to its disk. */
const guestMemoryBytes = 160 * mib;
const guestDiskBytes = 64 * mib;
const guestPatternText = '16M';
/** Guests on the volume server that a lab has room for. */
const sharedGuestsMax = 12;
/** A guest boots in 5 s on a quiet machine. */
const bootMsMax = 60_000;
/** A guest that was moved has to be at rest before it is moved again. */
const restMsMax = 20_000;

/** A guest of one run. */
export interface CampaignGuest {
  readonly vm: VmName;
  readonly address: string;
  readonly macAddress: string;
  readonly outside: OutsideClient;
}

/** What faults of a sitting need of its lab. */
export interface PlantNeeds {
  readonly smallDisks?: boolean;
  readonly ownClocks?: boolean;
  readonly sharedVolumes?: boolean;
}

/** Processes of the lab by victim that are the same whichever way a guest moves. */
const processNames: Readonly<Partial<Record<Victim, readonly string[]>>> = {
  'control-worker': ['control'], temporal: ['temporal'], ledger: ['ledger'],
  'volume-server': [volumeProcesses.daemon, volumeProcesses.gate],
};

/** Volumes of guests that are still to be made. Pure. */
const volumesOf = (count: number): LabVolume[] => Array.from({ length: count }, (_, index) => ({
  name: `shared-${index + 1}`, vm: `sharer-${index + 1}`, sizeBytes: guestDiskBytes,
}));

/** The composed lab. Moves go from host 1 to host 2, until it is turned. */
export class Plant {
  readonly lab: Lab;
  readonly client: Client;
  ledger: Ledger;
  readonly #image: GuestImage;
  readonly #clocks: ReadonlyMap<string, ProcessClock>;
  /** Those that no guest has had yet. */
  readonly #volumes: LabVolume[];
  readonly #reopenLedger: () => Promise<Ledger>;
  readonly #ledgerPort: number;
  #requests = 0;
  #isTurned = false;

  private constructor(fields: {
    readonly lab: Lab; readonly client: Client; readonly ledger: Ledger;
    readonly image: GuestImage; readonly clocks: ReadonlyMap<string, ProcessClock>;
    readonly volumes: readonly LabVolume[];
    readonly reopenLedger: () => Promise<Ledger>;
    readonly ledgerPort: number;
  }) {
    this.lab = fields.lab;
    this.client = fields.client;
    this.ledger = fields.ledger;
    this.#image = fields.image;
    this.#clocks = fields.clocks;
    this.#volumes = [...fields.volumes];
    this.#reopenLedger = fields.reopenLedger;
    this.#ledgerPort = fields.ledgerPort;
  }

  /**
   * `smallDisks`: hosts and ledger keep their things on file systems that can be filled.
   * `ownClocks`: the clocks of each of our processes can be set. `sharedVolumes`: there is
   * a volume server, with volumes for guests.
   */
  static async raise(
    onLab: (lab: Lab) => void,
    { smallDisks = false, ownClocks = false, sharedVolumes = false }: PlantNeeds = {},
  ): Promise<Plant> {
    const lab = await Lab.raise({ hostCount: 2 });
    onLab(lab);
    try {
      if (smallDisks) await mountSmallDisks(lab);
      const volumes = sharedVolumes ? volumesOf(sharedGuestsMax) : [];
      const image = placeGuestImage(imageDirectory(lab));
      const clocks = new Map<string, ProcessClock>();
      const services = await composeLab({
        lab, program: systemQemuProgram, volumes,
        ...(ownClocks ? {
          environmentOf: (name) => {
            const clock = new ProcessClock(lab, name);
            clocks.set(name, clock);
            return clock.environment;
          },
        } : {}),
      });
      const reopenLedger = (): Promise<Ledger> => connectLabLedger(lab, services);
      return new Plant({
        lab, image, clocks, volumes, reopenLedger, ledgerPort: services.ledgerPort,
        client: await connectLabTemporal(services), ledger: await reopenLedger(),
      });
    } catch (error) {
      await lab.lower();
      throw error;
    }
  }

  async lower(): Promise<void> {
    await this.ledger.close().catch(() => undefined);
    await this.client.connection.close().catch(() => undefined);
    await this.lab.lower();
  }

  get source(): LabHost { return this.lab.host(this.#isTurned ? 2 : 1); }
  get target(): LabHost { return this.lab.host(this.#isTurned ? 1 : 2); }
  /** Moves go from this host to the other one from now on. */
  turnTo({ source }: { readonly source: string }): void {
    this.#isTurned = this.lab.host(1).name !== source;
  }

  /** Moves of a guest that has come to rest go on from where it is. Failure: internal. */
  async settle({ vm }: CampaignGuest): Promise<void> {
    const owner = await until(async () => {
      const entry = await this.entry(vm);
      if (entry?.phase !== 'owned' || entry.owner === null) return null;
      this.turnTo({ source: entry.owner });
      return this.pidsOf('source-vmm', vm).length > 0 ? entry.owner : null;
    }, restMsMax);
    if (owner === null) throw new CodedError('internal', `${vm} is nowhere`);
  }

  freshRequest(): RequestId {
    this.#requests += 1;
    return requestId(`f${this.#requests}`);
  }

  /** A new guest on the source that answers. Failure: internal without a volume for it. */
  async boot({ failover, disk }: GuestKind): Promise<CampaignGuest> {
    const request = this.freshRequest();
    const octet = 10 + this.#requests % 200;
    const volume = disk === 'local' ? null : this.#volumes.shift();
    if (volume === undefined) throw new CodedError('internal', 'no volume is left in this lab');
    const vm = vmName(volume?.vm ?? `faulted-${this.#requests}`);
    const address = `198.18.1.${octet}`;
    const macAddress = `52:4e:43:00:03:${octet.toString(16).padStart(2, '0')}`;
    const spec = specOf({
      vm, image: this.#image,
      guest: {
        vcpuCount: 1, memoryBytes: guestMemoryBytes, address: `${address}/24`, macAddress,
        commandLine: `${this.#image.kernelCommandLine} novacron.ip=${address}/24 `
          + `novacron.pattern=${guestPatternText}`,
        diskBytes: guestDiskBytes,
      },
    });
    const { outcome } = await runLifecycle(this.client, {
      step: 'create',
      input: {
        version: 1, host: hostName(this.source.name), request, start: true,
        spec: { ...spec, failover, disks: volume === null ? spec.disks : [sharedDisk(volume)] },
      },
    });
    if (outcome.kind !== 'completed') {
      throw new CodedError('vm/start-failed', JSON.stringify(outcome).slice(0, 400));
    }
    const outside = await OutsideClient.whenGuestAnswers({
      labId: this.lab.id, namespace: this.lab.plan.clientNamespace, address,
      writeEveryMs: 20, echoEveryMs: 50,
    }, bootMsMax);
    return { vm, address, macAddress, outside };
  }

  /** Ends and removes a guest. Failure: internal when it can't be, for which the lab has to go. */
  async discard({ vm }: CampaignGuest): Promise<void> {
    const input = (): { version: 1; vm: VmName; request: RequestId } =>
      ({ version: 1, vm, request: this.freshRequest() });
    for (const request of [
      { step: 'stop', input: { ...input(), graceMs: 0 } }, { step: 'delete', input: input() },
    ] as const) {
      const { outcome } = await runLifecycle(this.client, request);
      if (outcome.kind !== 'completed') throw new CodedError('internal', JSON.stringify(outcome));
    }
  }

  /** Arms a point of the process that comes there. */
  arm(point: FaultPoint, vm: VmName): Promise<ArmedPoint> {
    const [name = ''] = this.#processNamesOf(holderOf(point));
    return armFaultPoint({
      socketPath: faultSocketOf(this.lab, name), point, vm,
      ...papersOf(this.lab, { role: 'lab', name: 'faults' }),
    });
  }

  /** Null while the ledger does not answer. */
  async entry(vm: VmName): Promise<VmEntry | null> {
    try {
      return await this.ledger.readVm(vm);
    } catch {
      return null;
    }
  }

  /** The ledger with the control worker's certificate, for requests that come again. */
  async asControl<T>(work: (ledger: Ledger) => Promise<T>): Promise<T> {
    const { material, revoked } = papersOf(this.lab, { role: 'control', name: 'control' });
    const ledger = await openLedger({
      address: '127.0.0.1', port: this.#ledgerPort, tls: material, revoked });
    try {
      return await work(ledger);
    } finally {
      await ledger.close();
    }
  }

  /** Clocks of a victim. Failure: internal where they can't be set. */
  clockOf(victim: Victim): ProcessClock {
    const [name = ''] = this.#processNamesOf(victim);
    const clock = this.#clocks.get(name);
    if (clock === undefined) throw new CodedError('internal', `${victim} has no clock of its own`);
    return clock;
  }

  hostOf(victim: Victim): LabHost {
    return victim.startsWith('target') ? this.target : this.source;
  }

  /** Pids of a victim that is a process; the dev server has a child that does its work. */
  pidsOf(victim: Victim, vm: VmName): number[] {
    const names = this.#processNamesOf(victim);
    if (names.length > 0) {
      return names.map((name) => this.lab.started(name).pid)
        .flatMap((pid) => [pid, ...childrenOf(pid)]);
    }
    const { guardFile } = this.#pathsOn(this.hostOf(victim), vm);
    const vmm = vmmPidIn(guardFile);
    if (vmm === null) return [];
    return victim.endsWith('-guard') ? [parentOf(vmm)] : [vmm];
  }

  /** Starts a killed process again; VMMs and guards are the product's to look after. */
  async restart(victim: Victim): Promise<void> {
    for (const name of this.#processNamesOf(victim)) {
      await this.lab.start(this.lab.started(name).spec);
    }
    if (victim !== 'ledger') return;
    await this.ledger.close().catch(() => undefined);
    this.ledger = await this.#reopenLedger();
  }

  /** What of a VM lies or runs on a host. */
  async remainsOn(host: LabHost, vm: VmName): Promise<string[]> {
    const { directory } = this.#pathsOn(host, vm);
    const memory = join(this.lab.directories.memory, host.name);
    const links = await runCommand(['ip', '-n', host.namespace, '-o', 'link', 'show']);
    const tap = tapName({ host: hostName(host.name), vm, nic: 'n0' });
    return [
      ...(existsSync(directory) ? [`${host.name}: its directory`] : []),
      ...(existsSync(memory) ? readdirSync(memory) : [])
        .filter((name) => name.startsWith(`${vm}.`)).map((name) => `${host.name}: memory ${name}`),
      ...(links.includes(`${tap}:`) ? [`${host.name}: its card`] : []),
      ...processesOfLab(this.lab.id)
        .filter(({ pid }) => commandLineOf(pid).includes(`${directory}/`))
        .map(({ name }) => `${host.name}: process ${name}`),
    ];
  }

  /** Processes of the lab that a victim is; none for a VMM, a guard or a host. */
  #processNamesOf(victim: Victim): readonly string[] {
    return victim.endsWith('-runner')
      ? [`host-${this.hostOf(victim).name}`] : processNames[victim] ?? [];
  }

  #pathsOn(host: LabHost, vm: VmName): ReturnType<typeof vmPaths> {
    return vmPaths(join(hostStateDirectory(this.lab, host), 'vms'), vm);
  }
}

function commandLineOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
}

/** Parent of a process from /proc; 0 when it is gone. */
function parentOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
  } catch {
    return 0;
  }
}

/** Processes that a process has started and that still run. */
export const childrenOf = (pid: number): number[] => readdirSync('/proc')
  .map(Number).filter((one) => Number.isInteger(one) && one > 1 && parentOf(one) === pid);
