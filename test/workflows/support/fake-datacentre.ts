/**
 * Hosts without VMMs for the workflow tests: a real ledger (in memory, real rules, real signatures)
 * and host operations that only keep books. Faults are set by step name.
 */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { HostOperations } from '../../../activities/host-operations.ts';
import type { CheckProgress, ExactnessReport } from '../../../contracts/exactness.ts';
import { CodedError, failureReport } from '../../../contracts/failures.ts';
import type { FailureCode } from '../../../contracts/failures.ts';
import { hostName, incarnation, vmName } from '../../../contracts/identity.ts';
import type { HostName, Incarnation, MigrationId, VmName } from '../../../contracts/identity.ts';
import type {
  LateFigures, MigrationPolicy, SessionOutcome, SessionProgress, StepInput,
} from '../../../contracts/migration.ts';
import type { Ledger, LedgerEvent, VmEntry } from '../../../contracts/ownership.ts';
import type { RunningVm, VmSpec } from '../../../contracts/runner.ts';
import { signDeclined, signTransferRecord } from '../../../runners/group/ownership/signing.ts';
import { openLocalLedger } from '../../../runners/ledger/local-ledger.ts';
import type { LocalLedger } from '../../../runners/ledger/local-ledger.ts';

/** Called before a step; throw to fail it, wait to delay it. */
export type Fault = (step: { readonly vm: VmName }, host: HostName) => Promise<void> | void;

interface Session {
  readonly step: StepInput;
  progress: SessionProgress;
  paused: boolean;
  cancelledBy: string | null;
  bandwidth: number;
  readonly done: Promise<SessionOutcome>;
  /** As if its runner had died. */
  readonly fail: (error: CodedError) => void;
  attempts: number;
  copyMs: number;
}

const gate = { address: '198.18.2.1', port: 1 };

export class FakeDatacentre {
  readonly ledger: LocalLedger;
  readonly control: Ledger;
  readonly hosts: readonly HostName[];
  /** Where vCPUs of each VM run now; two entries for one VM is the worst that can happen. */
  readonly running = new Map<VmName, Map<HostName, Incarnation>>();
  readonly prepared = new Set<string>();
  readonly files = new Set<string>();
  readonly sessions = new Map<MigrationId, Session>();
  readonly faults = new Map<string, Fault>();
  /** Every call in order, `host step`. */
  readonly calls: string[] = [];
  /** VMs in the order in which they were handed over. */
  readonly switched: VmName[] = [];
  /** Sessions at a time, at most. */
  sessionsMax = 0;
  /** Length of the memory copy, ms of real time. */
  copyMs = 50;
  /** What a source says at its release that it has sent in all. */
  late: LateFigures | null = null;
  /** What a target's check finds; null: it answers as runners did that knew no check. */
  damage: ExactnessReport | null = null;
  /** How far a target's check says it is. */
  check: CheckProgress | null = null;
  /** What a target says that has become of the VM since its start. */
  since: FailureCode | null = null;
  disks = 0;
  /** Disks of new VMs are on a volume server. */
  shared = false;
  readonly #keys: ReadonlyMap<HostName, KeyObject>;

  private constructor(ledger: LocalLedger, keys: ReadonlyMap<HostName, KeyObject>) {
    this.ledger = ledger;
    this.control = ledger.as({ role: 'control', name: 'control' });
    this.hosts = [...keys.keys()];
    this.#keys = keys;
  }

  static async open(names: readonly string[] = ['host-a', 'host-b', 'host-c']): Promise<FakeDatacentre> {
    const ledger = await openLocalLedger({ dir: null });
    const keys = new Map<HostName, KeyObject>();
    const control = ledger.as({ role: 'control', name: 'control' });
    for (const [index, name] of names.entries()) {
      const pair = generateKeyPairSync('ed25519');
      keys.set(hostName(name), pair.privateKey);
      const [verdict] = await control.propose([{
        kind: 'join-host',
        publicKeyPem: pair.publicKey.export({ type: 'spki', format: 'pem' }).toString(),
        facts: {
          version: 1, name, migrationAddress: `198.18.2.${11 + index}`, peerPort: 7001,
          lanePort: 7002, segments: ['lab'], accelerator: 'tcg', qemuVersion: '7.2.0',
          machineTypes: ['pc-i440fx-7.2'], kernelRelease: '6.18.0', memoryBytes: 2 ** 33,
          diskFreeBytes: 2 ** 33, cpuFlags: [], features: ['direct-engine'],
        },
      }]);
      if (verdict?.accepted !== true) throw new Error(JSON.stringify(verdict));
    }
    return new FakeDatacentre(ledger, keys);
  }

  /** Lets the ledger hear every host, as runners do every two seconds; answers how to end that. */
  beHeard(): () => void {
    const say = (): void => {
      for (const host of this.hosts) {
        const silence = { kind: 'renew', vm: vmName('nothing'), epoch: 1 } as const;
        void this.ledger.as({ role: 'host', name: host }).propose([silence]).catch(() => undefined);
      }
    };
    say();
    const timer = setInterval(say, 500);
    return () => clearInterval(timer);
  }

  spec(name: string): VmSpec {
    return {
      version: 1, name: vmName(name), vcpuCount: 1, memoryBytes: 256 * 2 ** 20,
      machineType: 'pc-i440fx-7.2', cpuModel: 'qemu64',
      disks: Array.from({ length: this.disks }, (_, index) => ({
        name: `disk${index}`, format: 'raw' as const, sizeBytes: 2 ** 20, sourceImage: null,
        volume: this.shared ? {
          kind: 'shared' as const, name: `${name}-${index}`,
          server: { name: 'store', address: '198.18.0.3', port: 7500 },
        } : 'local' as const,
      })),
      nics: [], failover: 'none',
      boot: { kind: 'kernel', kernel: '/k', initrd: null, commandLine: '' },
    };
  }

  /** A running VM, made without workflows. */
  async runningVm(name: string, host: HostName): Promise<VmName> {
    const vm = vmName(name);
    await this.#must(this.control, { kind: 'create', vm, host, spec: this.spec(name) });
    await this.#must(this.control, { kind: 'desire', vm, epoch: 1, desired: 'running' });
    await this.#start(vm, host, 1, null);
    return vm;
  }

  /** The VMM on its owner died, and the VM is booted cold there. */
  async bootAnew(vm: VmName): Promise<void> {
    const { owner, epoch, startedBy } = (await this.entry(vm))!;
    await this.#must(this.#as(owner!), { kind: 'restart', vm, epoch, incarnation: startedBy! });
    this.running.get(vm)?.delete(owner!);
    await this.#start(vm, owner!, epoch + 1, null);
  }

  /** The target's VMM died before its first instruction; `byWhom` asks for the VM back, if any. */
  async takeBack(vm: VmName, byWhom: HostName | null): Promise<void> {
    const { owner, epoch, startedBy, migration } = (await this.entry(vm))!;
    const statement = { vm, migration: migration!, epoch, incarnation: startedBy! };
    this.running.get(vm)?.delete(owner!);
    await this.#must(this.#as(owner!), {
      kind: 'declined', ...statement, signature: signDeclined(statement, this.#key(owner!)),
    });
    if (byWhom === null) return;
    await this.#must(this.#as(byWhom), {
      kind: 'revert', vm, migration: migration!, epoch, reason: 'the sweep' });
  }

  entry(vm: VmName): Promise<VmEntry | null> {
    return this.control.readVm(vm);
  }

  /** Hosts on which a VM runs; more than one is a broken promise. */
  whereRuns(vm: VmName): readonly HostName[] {
    return [...(this.running.get(vm)?.keys() ?? [])];
  }

  async close(): Promise<void> {
    for (const session of this.sessions.values()) session.cancelledBy ??= 'test end';
    await this.ledger.close();
  }

  async #must(ledger: Ledger, event: LedgerEvent): Promise<void> {
    const [verdict] = await ledger.propose([event]);
    if (verdict?.accepted !== true) {
      throw new CodedError(verdict?.code ?? 'internal', `${event.kind}: ${verdict?.reason}`);
    }
  }

  #as(host: HostName): Ledger {
    return this.ledger.as({ role: 'host', name: host });
  }

  #key(host: HostName): KeyObject {
    const key = this.#keys.get(host);
    if (key === undefined) throw new Error(host);
    return key;
  }

  async #start(vm: VmName, host: HostName, epoch: number, imageStamp: number | null): Promise<Incarnation> {
    const id = incarnation(randomBytes(16).toString('hex'));
    await this.#must(this.#as(host), { kind: 'started', vm, epoch, incarnation: id, imageStamp });
    this.#setRunning(vm, host, id);
    return id;
  }

  #setRunning(vm: VmName, host: HostName, id: Incarnation): void {
    const at = this.running.get(vm) ?? new Map<HostName, Incarnation>();
    this.running.set(vm, at);
    at.set(host, id);
    if (at.size > 1) throw new Error(`${vm} runs on ${[...at.keys()].join(' and ')}`);
  }

  async #fault(name: string, step: { readonly vm: VmName }, host: HostName): Promise<void> {
    this.calls.push(`${host} ${name}`);
    await this.faults.get(name)?.(step, host);
  }

  #progress(part: number, phase: SessionProgress['phase']): SessionProgress {
    const total = 256 * 2 ** 20;
    return {
      version: 1, phase, paused: false, round: 1, bytesPlanned: total, bytesDone: total * part,
      bytesOnWire: total * part / 2, diskBytesTotal: 0, diskBytesDone: 0,
      dirtyBytesPerSecond: 1e6, sendBytesPerSecond: 1e8, etaMs: 10, estimatedDowntimeMs: 5,
      convergence: 'fits', mirrorMode: 'none',
    };
  }

  #session(step: StepInput & { readonly policy: MigrationPolicy }): Session {
    const known = this.sessions.get(step.migration);
    if (known !== undefined) return known;
    const ended = Promise.withResolvers<SessionOutcome>();
    const session: Session = {
      step, progress: this.#progress(0, 'memory'), paused: false, cancelledBy: null,
      bandwidth: step.policy.bandwidthBytesPerSecond, done: ended.promise,
      fail: ended.reject, attempts: 0, copyMs: this.copyMs,
    };
    this.sessions.set(step.migration, session);
    this.sessionsMax = Math.max(this.sessionsMax, this.sessions.size);
    this.#copy(session).then(ended.resolve, ended.reject);
    return session;
  }

  async #copy(session: Session): Promise<SessionOutcome> {
    const { step } = session;
    for (let passedMs = 0; passedMs < session.copyMs; passedMs += session.paused ? 0 : 10) {
      if (session.cancelledBy !== null) return { kind: 'cancelled', by: session.cancelledBy };
      session.progress = this.#progress(passedMs / session.copyMs, 'memory');
      await sleep(10);
    }
    try {
      return await this.#switchOver(session);
    } catch (error) {
      const { code, detail } = error as CodedError;
      const entry = await this.entry(step.vm);
      if (entry?.owner === step.source && entry.phase !== 'unsettled') {
        this.#setRunning(step.vm, step.source, entry.startedBy ?? incarnation('0'.repeat(32)));
      }
      return { kind: 'failed', failure: failureReport(code, detail), resumed: true };
    }
  }

  async #switchOver({ step }: Session): Promise<SessionOutcome> {
    const { vm, source, target, migration, epoch } = step;
    this.running.get(vm)?.delete(source);
    await this.#fault('switchover', step, source);
    const record = {
      version: 1, migration, epoch, digest: 'd1'.repeat(16), missingDigest: '',
      missingPageCount: 0, ioSequence: Array.from({ length: this.disks }, () => 7),
    } as const;
    const quiesced = signTransferRecord(record, this.#key(source));
    await this.#must(this.#as(source), { kind: 'quiesced', vm, migration, epoch, record: quiesced });
    await this.#must(this.#as(target), {
      kind: 'ready', vm, migration, epoch, record: signTransferRecord(record, this.#key(target)),
    });
    await this.#must(this.#as(target), { kind: 'commit', vm, migration, epoch });
    const stamp = (await this.entry(vm))?.lastStarted ?? null;
    const targetIncarnation = await this.#start(vm, target, epoch + 1, stamp);
    this.switched.push(vm);
    await this.#fault('started', step, target);
    return {
      kind: 'handed-over', record: quiesced, targetIncarnation,
      figures: {
        totalMs: this.copyMs, totalParts: null, mode: 'pre-copy', downtimeMs: 8, rounds: 3, bytesOnWire: 1234567,
        downtimeParts: {
          stopMs: 1, lastPassMs: 1, deviceStateMs: 1, flushMs: 1, commitMs: 1, gateMs: 1,
          startedMs: 1, resumeMs: 1,
        },
        memoryBytesSent: 1234567, diskBytesSent: 0, postCopyFaults: 0, convergence: 'fits',
      },
    };
  }

  #running(step: StepInput, host: HostName): RunningVm {
    const id = this.running.get(step.vm)?.get(host);
    if (id === undefined) throw new CodedError('vm/not-running', step.vm);
    const spec = this.spec(step.vm);
    return {
      version: 1, name: step.vm, host, runState: 'running', incarnation: id, vmmPid: 1,
      qemuVersion: '7.2', machineType: spec.machineType, cpuModel: spec.cpuModel, vcpuCount: 1,
      memoryBytes: spec.memoryBytes, nics: [], boot: spec.boot, failover: 'none', cpuFlags: [],
      exactnessObstacles: [],
    balloon: false,
      disks: spec.disks.map(({ name, format, sizeBytes }) => (
        { name, nodeName: name, format, sizeBytes, path: `/d/${name}`, buffered: true }
      )),
    };
  }

  /** Waits for a session as a caller does: until its signal is aborted. */
  async #attend<T>(wait: Promise<T>, signal: AbortSignal): Promise<T> {
    const gone = Promise.withResolvers<never>();
    const leave = (): void => gone.reject(signal.reason);
    signal.addEventListener('abort', leave);
    try {
      return await Promise.race([wait, gone.promise]);
    } finally {
      signal.removeEventListener('abort', leave);
    }
  }

  /** What the runner of one host does. */
  operations(host: HostName): HostOperations {
    return {
      inspectVm: async (step) => {
        await this.#fault('inspectVm', step, host);
        return this.#running(step, host);
      },
      checkTarget: async (step) => this.#fault('checkTarget', step, host),
      prepareTarget: async (step) => {
        await this.#fault('prepareTarget', step, host);
        const entry = await this.entry(step.vm);
        if (entry?.migration !== step.migration || entry.phase !== 'preparing') {
          throw new CodedError('migration/cancelled', 'the migration is not open');
        }
        this.prepared.add(`${host}/${step.vm}`);
        return { peerAddress: gate.address, peerPort: 1, laneAddress: gate.address, lanePort: 2 };
      },
      copyDisk: async (step, { signal }) => {
        await this.#attend(Promise.resolve(this.#fault('copyDisk', step, host)), signal);
      },
      copyMemoryAndSwitchOver: async (step, { signal }) => {
        await this.#attend(
          Promise.resolve(this.#fault('copyMemoryAndSwitchOver', step, host)), signal,
        );
        const session = this.#session(step);
        session.attempts += 1;
        return this.#attend(session.done, signal);
      },
      commandSession: async (step) => {
        await this.#fault('commandSession', step, host);
        const session = this.sessions.get(step.migration);
        if (session === undefined) throw new CodedError('migration/not-here', step.migration);
        const entry = await this.entry(step.vm);
        if (entry?.phase === 'unsettled') throw new CodedError('migration/past-return', step.vm);
        const { command } = step;
        if (command.kind === 'cancel') session.cancelledBy = command.by;
        if (command.kind === 'pause') session.paused = true;
        if (command.kind === 'resume') session.paused = false;
        if (command.kind === 'set-bandwidth') session.bandwidth = command.bandwidthBytesPerSecond;
      },
      peekSession: ({ migration }) => this.sessions.get(migration)?.progress ?? null,
      peekCheck: () => this.check,
      verifyTarget: async (step) => {
        await this.#fault('verifyTarget', step, host);
        const entry = await this.entry(step.vm);
        const digest = entry?.ready?.digest ?? '';
        if (this.since !== null) return { digest, since: failureReport(this.since, 'test') };
        return this.damage === null ? { digest } : { digest, exactness: this.damage };
      },
      resolveDamage: async (step) => {
        await this.#fault('resolveDamage', step, host);
        this.damage = null;
        const epoch = (await this.entry(step.vm))?.epoch ?? 0;
        return { runState: 'running', incarnation: null, epoch };
      },
      releaseSource: async (step) => {
        await this.#fault('releaseSource', step, host);
        const entry = await this.entry(step.vm);
        if (entry?.owner === host) throw new CodedError('ownership/refused', 'it is ours');
        this.sessions.delete(step.migration);
        return this.late;
      },
      abortSource: async (step) => {
        await this.#fault('abortSource', step, host);
        const session = this.sessions.get(step.migration);
        if (session !== undefined) session.cancelledBy ??= 'abort';
        await session?.done.catch(() => undefined);
        this.sessions.delete(step.migration);
        const entry = await this.entry(step.vm);
        if (entry?.owner !== host || entry.desired !== 'running') return;
        if (this.running.get(step.vm)?.has(host) === true) return;
        if (entry.lastStarted === entry.epoch) {
          this.#setRunning(step.vm, host, entry.startedBy ?? incarnation('0'.repeat(32)));
        } else {
          await this.#start(step.vm, host, entry.epoch, entry.lastStarted);
        }
      },
      discardTarget: async (step) => {
        await this.#fault('discardTarget', step, host);
        const entry = await this.entry(step.vm);
        if (entry?.owner === host) throw new CodedError('ownership/refused', 'it is ours');
        this.prepared.delete(`${host}/${step.vm}`);
      },
      createVmFiles: async (step) => {
        await this.#fault('createVmFiles', step, host);
        this.files.add(`${host}/${step.vm}`);
      },
      startVm: async (step) => {
        await this.#fault('startVm', step, host);
        const known = this.running.get(step.vm)?.get(host);
        if (known !== undefined) return { runState: 'running', incarnation: known, epoch: step.epoch };
        const id = await this.#start(step.vm, host, step.epoch, null);
        return { runState: 'running', incarnation: id, epoch: step.epoch };
      },
      stopVm: async (step) => {
        await this.#fault('stopVm', step, host);
        this.running.get(step.vm)?.delete(host);
      },
      destroyVmFiles: async (step) => {
        await this.#fault('destroyVmFiles', step, host);
        if ((await this.entry(step.vm)) !== null) throw new CodedError('ownership/refused', 'exists');
        this.files.delete(`${host}/${step.vm}`);
      },
    };
  }
}
