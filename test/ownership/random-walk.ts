/**
 * P1-P5 over random walks: three hosts and two VMs on one real ledger (core, log, signatures), with
 * messages that are delayed, reordered and delivered twice, VMMs, runners and hosts that crash, and
 * a ledger that loses its power. Reading the ledger is never delayed; everything sent to it may be.
 */
import fc from 'fast-check';
import { expect } from 'vitest';
import { hostName, migrationId, requestId, vmName } from '../../contracts/identity.ts';
import type { HostName, Identity, Incarnation, MigrationId, VmName } from '../../contracts/identity.ts';
import type { LedgerEvent, MigrationEnd, VmEntry } from '../../contracts/ownership.ts';
import type { LedgerParts } from './crash-trials.ts';
import type { MemoryStorage } from '../../runners/group/ledger-log/memory-storage.ts';
import { verifyLedger } from '../../runners/group/ledger-log/verify.ts';
import { signDeclined } from '../../runners/group/ownership/signing.ts';
import type { LedgerCore } from '../../runners/ledger/core.ts';
import {
  asHost, control, hostKey, joinHost, record, silent, spec,
} from '../support/ledger-fixtures.ts';

const names = ['host-a', 'host-b', 'host-c'].map(hostName);
const vms = ['vm-1', 'vm-2'].map(vmName);

/** One VM's place on one host. */
interface Place {
  state: 'none' | 'ready' | 'paused' | 'run';
  memory: number;
  disk: number;
  stamp: number;
  vmm: Incarnation | null;
  /** Migration whose image this is. */
  image: MigrationId | null;
}
interface Message {
  readonly event: LedgerEvent;
  readonly proposer: Identity;
  /** What the host does when its event is accepted and what it believed still holds. */
  readonly onAccepted: (entry: VmEntry) => void;
}

class Walk {
  private readonly parts: LedgerParts;
  private readonly segmentBytesMax: number;
  private storage: MemoryStorage;
  private core!: LedgerCore;
  private steadyMs = 0;
  private wallMs = 1_000_000;
  private readonly places = new Map<string, Place>();
  private readonly writes = new Map<VmName, number>(vms.map((vm) => [vm, 0]));
  private readonly ends = new Map<MigrationId, MigrationEnd>();
  private readonly epochs = new Map<VmName, number>();
  private readonly mail: Message[] = [];
  private requests = 0;
  private vmmCount = 0;
  readonly accepted = new Map<string, number>();

  constructor(parts: LedgerParts, segmentBytesMax: number) {
    this.parts = parts;
    this.segmentBytesMax = segmentBytesMax;
    this.storage = parts.memoryStorage();
  }

  private place(host: HostName, vm: VmName): Place {
    const key = `${host}/${vm}`;
    const known = this.places.get(key);
    if (known !== undefined) return known;
    const fresh: Place = { state: 'none', memory: 0, disk: 0, stamp: 0, vmm: null, image: null };
    this.places.set(key, fresh);
    return fresh;
  }
  private freshVmm(): Incarnation {
    this.vmmCount += 1;
    return this.vmmCount.toString(16).padStart(32, '0') as Incarnation;
  }
  private async open(): Promise<void> {
    this.core = await this.parts.LedgerCore.open({
      storage: this.storage, logger: silent, segmentBytesMax: this.segmentBytesMax,
      now: () => ({ wallMs: this.wallMs, steadyMs: this.steadyMs }),
    });
  }
  private async propose(event: LedgerEvent, proposer: Identity) {
    const [verdict] = await this.core.propose([event], proposer);
    if (verdict?.accepted && verdict.changed) {
      this.accepted.set(event.kind, (this.accepted.get(event.kind) ?? 0) + 1);
    }
    return verdict;
  }

  async begin(): Promise<void> {
    await this.open();
    for (const name of names) await this.propose(joinHost(name), asHost(name));
    for (const vm of vms) {
      const host = names[0] as HostName;
      await this.propose({
        kind: 'create', vm, host, spec: spec({ name: vm, failover: 'automatic' }),
      }, control);
      await this.propose({ kind: 'desire', vm, epoch: 1, desired: 'running' }, control);
    }
  }

  private send(
    event: LedgerEvent, proposer: Identity, onAccepted: Message['onAccepted'] = () => {},
  ): void {
    this.mail.push({ event, proposer, onAccepted });
  }

  /** One step, chosen by numbers; unusable choices do nothing. */
  async step([what, vmChoice, hostChoice, choice]: readonly number[]): Promise<void> {
    const vm = vms[(vmChoice ?? 0) % vms.length] as VmName;
    const host = names[(hostChoice ?? 0) % names.length] as HostName;
    const entry = this.core.readVm(vm);
    if (entry === null) return;
    const number = choice ?? 0;
    const kind = (what ?? 0) % 20;
    if (kind < 6) await this.deliver(number);
    else if (kind < 9) this.act(entry, host);
    else if (kind < 11) this.act(entry, entry.owner as HostName);
    else if (kind < 13) this.attest(entry);
    else if (kind < 16) this.controlSays(entry, host, number);
    else if (kind === 16) this.writeAndRun(entry);
    else if (kind === 17) this.fault(entry, host, number);
    else if (kind === 18) this.passTime(number);
    else await this.ledgerFault(number);
    this.check();
  }

  /** Delivers any message, now or again later. */
  private async deliver(number: number): Promise<void> {
    if (this.mail.length === 0) return;
    const at = number % this.mail.length;
    const message = this.mail[at] as Message;
    if (number % 3 !== 0 || this.mail.length > 40) this.mail.splice(at, 1);
    const verdict = await this.propose(message.event, message.proposer);
    if (verdict?.accepted && verdict.entry !== null) message.onAccepted(verdict.entry);
  }

  /** What a host does by the host rules when it reads this entry. */
  private act(entry: VmEntry, host: HostName): void {
    const place = this.place(host, entry.vm);
    const { vm } = entry;
    if (entry.owner !== host) {
      const over = entry.phase === 'owned' && place.state !== 'run';
      if (over) this.drop(place);
      return;
    }
    if (place.state === 'run') {
      if (entry.phase === 'preparing' && place.stamp === entry.epoch) place.state = 'paused';
      return;
    }
    if (entry.phase === 'preparing') return;
    const mine = place.state === 'paused'
      || (place.state === 'ready' && place.image === entry.migration && entry.target === host);
    const restartable = entry.lastStarted === entry.epoch && entry.startedBy !== place.vmm;
    if (place.state === 'none' && restartable && entry.startedBy !== null) {
      this.send({ kind: 'restart', vm, epoch: entry.epoch, incarnation: entry.startedBy }, asHost(host));
      return;
    }
    if (mine) {
      if (place.stamp !== entry.lastStarted && entry.lastStarted !== entry.epoch) this.drop(place);
      else this.sendStart(entry, host, place);
    } else if (place.state === 'none' && entry.owner === entry.diskHolder) {
      place.vmm = this.freshVmm();
      this.sendStart(entry, host, place);
    }
  }

  private sendStart(entry: VmEntry, host: HostName, place: Place): void {
    const { vm, epoch } = entry;
    const vmm = place.vmm as Incarnation;
    const cold = place.state === 'none';
    const image = place.image;
    const imageStamp = cold ? null : place.stamp;
    this.send({ kind: 'started', vm, epoch, incarnation: vmm, imageStamp }, asHost(host), () => {
      // Acceptance may be old news; a host acts on what the ledger says when it starts.
      const now = this.core.readVm(vm);
      const current = now !== null && now.owner === host && now.epoch === epoch
        && now.phase !== 'preparing' && now.startedBy === vmm && place.vmm === vmm;
      if (!current || place.state === 'run' || place.image !== image) return;
      if (cold !== (place.state === 'none')) return;
      // Every fourth VMM can't run what it has got.
      if (now.phase === 'unsettled' && place.state === 'ready' && parseInt(vmm, 16) % 4 === 0) {
        this.decline(now, host, place);
        return;
      }
      if (cold) place.memory = place.disk;
      place.state = 'run';
      place.stamp = epoch;
    });
  }

  /** The copy of an open move, and what both sides attest about it. */
  private attest(entry: VmEntry): void {
    if (entry.phase !== 'preparing' || entry.owner === null || entry.target === null) return;
    const source = this.place(entry.owner, entry.vm);
    const target = this.place(entry.target, entry.vm);
    const migration = entry.migration as MigrationId;
    if (source.state !== 'paused' || source.stamp !== entry.epoch) return;
    if (target.image !== migration || target.state !== 'ready') {
      this.drop(target);
      Object.assign(target, {
        state: 'ready', memory: source.memory, disk: source.disk, stamp: source.stamp,
        vmm: this.freshVmm(), image: migration,
      });
    }
    const of = { migration, epoch: entry.epoch, digest: `d${source.memory}` };
    const about = { vm: entry.vm, migration, epoch: entry.epoch };
    const signed = (host: HostName) => record(of, hostKey(host).privateKey);
    this.send({ kind: 'quiesced', ...about, record: signed(entry.owner) }, asHost(entry.owner));
    this.send({ kind: 'ready', ...about, record: signed(entry.target) }, asHost(entry.target));
    this.send({ kind: 'commit', ...about }, asHost(entry.target));
  }

  private controlSays(entry: VmEntry, host: HostName, number: number): void {
    const { vm, epoch } = entry;
    const migration = entry.migration ?? migrationId(vm, requestId('none'));
    const about = { vm, migration, epoch };
    const fresh = (): MigrationId => {
      this.requests += 1;
      return migrationId(vm, requestId(`r${this.requests}`));
    };
    const owner = entry.owner === null ? null : this.place(entry.owner, vm);
    const choices: (() => LedgerEvent | null)[] = [
      () => ({
        kind: 'prepare', vm, epoch, migration: fresh(), target: host, postCopyAllowed: false,
        commitDelegated: number % 2 === 0,
      }),
      () => ({ kind: 'commit', ...about }),
      () => ({ kind: 'abort', ...about, reason: 'walk' }),
      () => ({ kind: 'revert', ...about, reason: 'walk' }),
      () => (owner?.state === 'run' && owner.stamp === epoch ? { kind: 'settle', ...about } : null),
      () => ({ kind: 'failover', vm, epoch, to: host, fenceProof: null }),
    ];
    const event = choices[number % choices.length]?.() ?? null;
    if (event !== null) this.send(event, control);
  }

  private writeAndRun(entry: VmEntry): void {
    for (const name of names) {
      const place = this.place(name, entry.vm);
      if (place.state !== 'run') continue;
      const count = (this.writes.get(entry.vm) ?? 0) + 1;
      this.writes.set(entry.vm, count);
      Object.assign(place, { memory: count, disk: count });
    }
  }

  private drop(place: Place): void {
    Object.assign(place, { state: 'none', memory: 0, stamp: 0, vmm: null, image: null });
  }

  private fault(entry: VmEntry, host: HostName, number: number): void {
    const place = this.place(host, entry.vm);
    if (number % 3 === 0) {
      for (const vm of vms) this.drop(this.place(host, vm));
    } else if (number % 3 === 1) {
      if (place.state === 'run') place.state = 'paused';
    }
  }

  /** `cont` failed at the target: its VMM is dead and ran nothing. */
  private decline(entry: VmEntry, host: HostName, place: Place): void {
    const { vm, migration, epoch } = entry;
    if (migration === null || place.vmm === null) return;
    const statement = { vm, migration, epoch, incarnation: place.vmm };
    this.drop(place);
    this.send({
      kind: 'declined', ...statement,
      signature: signDeclined(statement, hostKey(host).privateKey),
    }, asHost(host));
  }

  /** A long silence: guards stop what runs under a lease before the ledger may give it away. */
  private passTime(number: number): void {
    const longMs = number % 2 === 0 ? 2_500 : 14_000;
    this.steadyMs += longMs;
    this.wallMs += longMs;
    if (longMs < 12_000) return;
    for (const place of this.places.values()) if (place.state === 'run') place.state = 'paused';
  }

  private async ledgerFault(number: number): Promise<void> {
    this.storage = this.storage.losePower((loose) => number % (loose + 1));
    await this.open();
  }

  private check(): void {
    for (const vm of vms) {
      const running = names.map((name) => this.place(name, vm)).filter(({ state }) => state === 'run');
      expect(running.length, `P1 ${vm}`).toBeLessThanOrEqual(1);
      for (const place of running) expect(place.memory, `P3 ${vm}`).toBe(this.writes.get(vm));
      const entry = this.core.readVm(vm);
      expect(entry).not.toBeNull();
      if (entry === null) continue;
      expect(entry.epoch, `P2 ${vm}`).toBeGreaterThanOrEqual(this.epochs.get(vm) ?? 0);
      this.epochs.set(vm, entry.epoch);
      expect(this.place(entry.diskHolder, vm).disk, `P4 ${vm}`).toBe(this.writes.get(vm));
    }
    for (const move of this.core.state.endedMoves.values()) {
      const known = this.ends.get(move.migration);
      if (known !== undefined) expect(move.end, `P5 ${move.migration}`).toBe(known);
      if (move.end !== null) this.ends.set(move.migration, move.end);
    }
    for (const migration of this.ends.keys()) {
      expect(this.core.migrationEnd(migration), `P5 ${migration}`).toBe(this.ends.get(migration));
    }
  }

  /** The log itself, step by step, against the specification. */
  async checkLog(): Promise<MemoryStorage> {
    // A checkpoint may follow the last answer.
    await new Promise((resolve) => setImmediate(resolve));
    expect((await verifyLedger(this.storage)).problems).toEqual([]);
    return this.storage;
  }
}

/**
 * Walks `runs` times and throws at the first that breaks a property. Answers how often each event
 * was accepted, so that a test can see that the walks got somewhere.
 */
export async function randomWalks(
  parts: LedgerParts, { seed, runs, segmentBytesMax = 40_000, onLog = async () => {} }: {
    readonly seed: number; readonly runs: number;
    /** Small, so that checkpoints are met on the way; they shorten the log. */
    readonly segmentBytesMax?: number;
    /** Shown the log of each walk that held. */
    readonly onLog?: (storage: MemoryStorage) => Promise<void>;
  },
): Promise<ReadonlyMap<string, number>> {
  const accepted = new Map<string, number>();
  const number = fc.nat(1_000_000);
  const walks = fc.array(fc.tuple(number, number, number, number), {
    minLength: 300, maxLength: 900, size: 'max',
  });
  await fc.assert(fc.asyncProperty(walks, async (choices) => {
    const walk = new Walk(parts, segmentBytesMax);
    await walk.begin();
    for (const one of choices) await walk.step(one);
    await onLog(await walk.checkLog());
    for (const [kind, count] of walk.accepted) {
      accepted.set(kind, (accepted.get(kind) ?? 0) + count);
    }
  }), { seed, numRuns: runs, endOnFailure: true });
  return accepted;
}
