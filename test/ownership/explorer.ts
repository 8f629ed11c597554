/**
 * Exhaustive explorer: the production `decide()` coupled with the host actions of the specification
 * (docs/models/VmLedgerLocal.tla), every interleaving within bounds, breadth first. It also sends
 * late duplicates of every message that control could ever have sent, repeats every accepted event,
 * and holds every step of the ledger against the specification's actions.
 */
import type { HostName, Identity, Incarnation, MigrationId } from '../../contracts/identity.ts';
import type { LedgerEvent, TransferRecord, VmEntry } from '../../contracts/ownership.ts';
import type { decide as productionDecide } from '../../runners/group/ownership/decide.ts';
import { leaseOutAfterMs } from '../../runners/group/ownership/leases.ts';
import { actionsOfEvent, modelActions } from '../../runners/group/ownership/model-actions.ts';
import type { SignatureChecks } from '../../runners/group/ownership/signing.ts';
import type { LedgerView, MoveRecord, VmRecord } from '../../runners/group/ownership/state.ts';
import { LedgerState } from '../../runners/group/ownership/state.ts';
import { asHost, control, facts, moveId, spec, vm } from '../support/ledger-fixtures.ts';

export interface Bounds {
  readonly hosts: number;
  readonly epochMax: number;
  readonly writeMax: number;
  readonly moveMax: number;
  readonly crashMax: number;
  readonly postCopy: boolean;
  /** Begin with a VM that never ran instead of a running one. */
  readonly created: boolean;
  /** Give up (and fail) beyond this many states; a bound on memory, not on the search. */
  readonly stateMax: number;
}
export interface Exploration {
  readonly states: number;
  readonly transitions: number;
  readonly ledgerSteps: Readonly<Record<string, number>>;
  readonly violation: string | null;
  /** Actions that lead to the violation. */
  readonly trace: readonly string[];
}
type Decide = typeof productionDecide;
/** Steps of the ledger that a sound exploration must have seen. */
const stepKinds: readonly LedgerEvent['kind'][] = [
  'prepare', 'quiesced', 'ready', 'commit', 'abort', 'started', 'revert', 'declined', 'settle',
  'restart', 'failover',
];
type VmState = 'run' | 'paused' | 'ready' | 'none';

interface HostState {
  readonly vm: VmState;
  readonly mem: number;
  /** Number of the migration whose image it received. */
  readonly rid: number;
  readonly stamp: number;
  readonly seen: number;
  /** Number of the migration that made the epoch it has seen; 0 for none. */
  readonly smig: number;
  readonly okr: boolean;
  readonly go: boolean;
  readonly lease: 'ok' | 'exp' | 'no';
  readonly whole: boolean;
  readonly gate: number;
  readonly disk: number;
  readonly vmm: Incarnation | null;
}
interface World {
  readonly record: VmRecord;
  /** Migrations so far, by number - 1: what Prepare said and how they ended. */
  readonly moves: readonly { readonly epoch: number; readonly target: HostName }[];
  readonly ended: readonly (MoveRecord | null)[];
  readonly hosts: readonly HostState[];
  readonly ack: number;
  readonly crashes: number;
  readonly failovers: number;
  readonly lostPostCopy: boolean;
  readonly nextVmm: number;
}

const hostNames = ['host-a', 'host-b', 'host-c'] as HostName[];
const hostSeats: readonly Identity[] = hostNames.map(asHost);
const moveIds = [1, 2, 3, 4].map((n) => moveId(`r${n}`));
const trusting: SignatureChecks = {
  isPublicKey: () => true, transferRecord: () => true, declined: () => true,
};
const hostEntries = new Map(hostNames.map((name) => [name, {
  version: 1 as const, facts: facts(name), publicKeyPem: 'key', cordoned: false, joinedAtMs: 0,
  changedAtMs: 0,
}]));
const nowMs = 1e9;
const vmmOf = (number: number): Incarnation => number.toString(16).padStart(32, '0') as Incarnation;

function viewOf(world: World): LedgerView {
  const owner = world.record.entry.owner;
  const lease = owner === null ? 'no' : world.hosts[hostNames.indexOf(owner)]?.lease;
  return {
    index: 1, vmCount: 1, hostCount: hostEntries.size,
    vm: () => world.record,
    host: (name) => hostEntries.get(name),
    ended: (id) => world.ended[moveIds.indexOf(id)] ?? undefined,
    leaseRenewedAtMs: () => (lease === 'exp' ? nowMs - leaseOutAfterMs() - 1 : nowMs),
  };
}

/** A state as text: everything that can matter later, incarnations only by what they equal. */
function keyOf(world: World): string {
  const { record: { entry, move, origin }, hosts } = world;
  let key = `${entry.phase[0]}${entry.epoch}${entry.owner?.[5]}${entry.previous?.[5] ?? '-'}`
    + `${entry.lastStarted}${entry.startedBefore}${entry.diskHolder[5]}${world.moves.length}`
    + `${entry.quiesced === null ? '-' : entry.quiesced.missingPageCount}`
    + `${entry.ready === null ? '-' : entry.ready.missingPageCount}${origin.kind[0]}${origin.kind[1]}`
    + `${move?.decision?.[0] ?? '-'}|`;
  for (const { epoch, target } of world.moves) key += `${epoch}${target[5]}`;
  for (const ended of world.ended) key += ended?.end?.[0] ?? '-';
  for (const host of hosts) {
    key += `|${host.vm[0]}${host.mem}${host.rid}${host.stamp}${host.seen}${host.smig}`
      + `${Number(host.okr)}${Number(host.go)}${host.lease[0]}${Number(host.whole)}${host.gate}`
      + `${host.disk}${host.vmm === null ? 'n' : host.vmm === entry.startedBy ? 's'
        : host.vmm === move?.declinedBy ? 'd' : 'o'}`;
  }
  return `${key}|${world.ack}${world.crashes}${world.failovers > 0 ? 1 : 0}${Number(world.lostPostCopy)}`
    + `${entry.startedBy === null ? 'n' : 's'}`;
}

function initialWorld(decide: Decide, bounds: Bounds): World {
  const state = new LedgerState(nowMs);
  for (const host of hostEntries.values()) {
    state.apply({ vm: null, host, ended: null });
  }
  const at = { now: { wallMs: nowMs, steadyMs: nowMs }, checks: trusting };
  const propose = (event: LedgerEvent, proposer: Identity): void => {
    const { verdict, change } = decide(state, event, { ...at, proposer });
    if (!verdict.accepted || change === null) throw new Error(JSON.stringify(verdict));
    state.apply(change);
  };
  const [first = 'host-a' as HostName] = hostNames;
  propose({ kind: 'create', vm, host: first, spec: spec({ failover: 'automatic' }) }, control);
  propose({ kind: 'desire', vm, epoch: 1, desired: 'running' }, control);
  const running = !bounds.created;
  if (running) {
    propose({ kind: 'started', vm, epoch: 1, incarnation: vmmOf(1), imageStamp: null },
      hostSeats[0] as Identity);
  }
  const hosts = hostNames.slice(0, bounds.hosts).map((_, index): HostState => ({
    vm: index === 0 && running ? 'run' : 'none', mem: 0, rid: 0,
    stamp: index === 0 && running ? 1 : 0, seen: index === 0 && running ? 1 : 0, smig: 0,
    okr: false, go: false, lease: index === 0 ? 'ok' : 'no', whole: true,
    gate: index === 0 && running ? 1 : 0, disk: 0, vmm: index === 0 && running ? vmmOf(1) : null,
  }));
  return {
    record: state.vm(vm) as VmRecord, moves: [], ended: [], hosts, ack: 0, crashes: 0, failovers: 0,
    lostPostCopy: false, nextVmm: 2,
  };
}

/** Guard of the specification's RecStart, which also reads what the host believes. */
function startViolation(world: World, index: number, cold: boolean): string | null {
  const host = world.hosts[index] as HostState;
  const { entry } = world.record;
  const mine = entry.owner === hostNames[index] && host.seen === entry.epoch;
  const phase = entry.phase === 'owned' || entry.phase === 'unsettled';
  const holds = entry.diskHolder === hostNames[index];
  const image = host.stamp === entry.lastStarted || (entry.lastStarted === entry.epoch && holds);
  return mine && phase && (cold ? holds : image) ? null : 'RecStart: its guard does not hold';
}

/** What the specification demands of every state. */
function stateViolation({ hosts, record, ack, crashes, failovers, lostPostCopy }: World): string | null {
  const running = hosts.filter((host) => host.vm === 'run');
  if (running.length > 1) return 'OneRunning';
  if (running.some((host) => host.mem !== ack)) return 'NoTimeTravel';
  if (crashes === 0 && failovers === 0 && lostPostCopy) return 'PcSafe';
  const holder = hosts[hostNames.indexOf(record.entry.diskHolder)];
  return holder?.disk === ack ? null : 'HolderDisk';
}

class Violation extends Error {}

class Steps {
  private readonly decide: Decide;
  private readonly bounds: Bounds;
  private readonly emit: (label: string, world: World) => void;
  readonly ledgerSteps: Record<string, number> = {};

  constructor(decide: Decide, bounds: Bounds, emit: (label: string, world: World) => void) {
    this.decide = decide;
    this.bounds = bounds;
    this.emit = emit;
  }

  /** Proposes; null when refused. Checks the step against the specification, and its repeat. */
  private propose(world: World, event: LedgerEvent, proposer: Identity): World | null {
    const at = { proposer, now: { wallMs: nowMs, steadyMs: nowMs }, checks: trusting };
    const { verdict, change } = this.decide(viewOf(world), event, at);
    if (!verdict.accepted) {
      if (change !== null) throw new Violation(`a refused ${event.kind} changes something`);
      return null;
    }
    if (change === null || change.vm === null) return world;
    const next = this.applied(world, event, change.vm, change.ended);
    const again = this.decide(viewOf(next), event, at);
    if (!again.verdict.accepted || again.change?.vm) {
      throw new Violation(`the repeat of ${event.kind} ${again.verdict.accepted ? 'changes' : 'fails'}`);
    }
    return next;
  }

  private applied(world: World, event: LedgerEvent, record: VmRecord, ended: MoveRecord | null): World {
    const before: VmEntry = world.record.entry;
    const { entry } = record;
    const taken = modelActions(before, entry);
    const allowed = actionsOfEvent[event.kind] ?? [];
    if (!taken.some((action) => allowed.includes(action))) {
      throw new Violation(`${event.kind} is no step of the specification (${taken.join() || 'none'})`);
    }
    this.ledgerSteps[event.kind] = (this.ledgerSteps[event.kind] ?? 0) + 1;
    if (entry.epoch < before.epoch) throw new Violation('an epoch falls');
    const was = world.record.move;
    const decidedAnew = was !== null && was.decision !== null
      && was.migration === record.move?.migration && was.decision !== record.move.decision;
    if (decidedAnew) throw new Violation('DecidedOnce: a decision changes');
    let endedMoves = world.ended;
    if (ended !== null) {
      const number = moveIds.indexOf(ended.migration);
      if (world.ended[number]) throw new Violation('DecidedOnce: a migration ends twice');
      endedMoves = world.moves.map((_, n) => (n === number ? ended : world.ended[n] ?? null));
    }
    const newEpoch = entry.epoch > before.epoch;
    const hosts = newEpoch
      ? world.hosts.map((host, n): HostState => ({
        ...host, lease: hostNames[n] === entry.owner ? 'ok' : 'no',
      }))
      : world.hosts;
    return { ...world, record, ended: endedMoves, hosts };
  }

  private withHost(world: World, index: number, change: Partial<HostState>): World {
    return {
      ...world,
      hosts: world.hosts.map((host, n) => (n === index ? { ...host, ...change } : host)),
    };
  }

  private tell(label: string, next: World | null, from: World): void {
    if (next !== null && next !== from) this.emit(label, next);
  }

  /** Every step that the world can take. */
  from(world: World): void {
    this.control(world);
    this.transfer(world);
    this.fill(world);
    for (let index = 0; index < world.hosts.length; index += 1) {
      this.ledgerTalk(world, index);
      this.local(world, index);
      this.faults(world, index);
    }
  }

  /** Messages of control: everything it could mean now, and everything it could ever have sent. */
  private control(world: World): void {
    const { entry } = world.record;
    const mayGrow = entry.epoch < this.bounds.epochMax;
    for (const [n, move] of world.moves.entries()) {
      const of = { vm, migration: moveIds[n] as MigrationId };
      const first = { ...of, epoch: move.epoch };
      const second = { ...of, epoch: move.epoch + 1 };
      if (mayGrow) {
        this.tell(`commit ${n + 1}`, this.propose(world, { kind: 'commit', ...first }, control), world);
        this.tell(`revert ${n + 1}`,
          this.propose(world, { kind: 'revert', ...second, reason: '' }, control), world);
      }
      this.tell(`abort ${n + 1}`,
        this.propose(world, { kind: 'abort', ...first, reason: '' }, control), world);
      this.tell(`prepare ${n + 1} again`, this.propose(world, {
        kind: 'prepare', ...first, target: move.target, postCopyAllowed: true,
        commitDelegated: true,
      }, control), world);
      const owner = world.hosts[hostNames.indexOf(entry.owner as HostName)];
      if (owner?.vm === 'run' && owner.stamp === entry.epoch) {
        const missingPageCount = owner.whole ? 0 : 1;
        const next = this.propose(world, { kind: 'settle', ...second, missingPageCount }, control);
        if (next !== null && next !== world && !owner.whole) throw new Violation('Settle: not whole');
        this.tell(`settle ${n + 1}`, next, world);
      }
    }
    for (let n = 0; n < world.hosts.length; n += 1) {
      const host = hostNames[n] as HostName;
      this.prepare(world, host);
      if (!mayGrow) continue;
      const next = this.propose(world, {
        kind: 'failover', vm, epoch: entry.epoch, to: host, fenceProof: null,
      }, control);
      if (next !== null && next !== world) {
        const owner = world.hosts[hostNames.indexOf(entry.owner as HostName)];
        if (owner?.lease !== 'exp') throw new Violation('Failover: the lease holds');
        this.emit(`failover to ${host}`, { ...next, failovers: world.failovers + 1 });
      }
    }
  }

  private prepare(world: World, target: HostName): void {
    const { epoch } = world.record.entry;
    if (world.moves.length >= this.bounds.moveMax) return;
    const next = this.propose(world, {
      kind: 'prepare', vm, migration: moveIds[world.moves.length] as MigrationId, epoch, target,
      postCopyAllowed: this.bounds.postCopy, commitDelegated: true,
    }, control);
    if (next === null || next === world) return;
    this.emit(`prepare to ${target}`, {
      ...next, moves: [...world.moves, { epoch, target }], ended: [...world.ended, null],
    });
  }

  private recordOf(world: World, missing: boolean, of: number): TransferRecord {
    return {
      version: 1, migration: moveIds[of - 1] as MigrationId,
      epoch: world.moves[of - 1]?.epoch ?? 0, digest: 'd', missingDigest: missing ? 'm' : '',
      missingPageCount: missing ? 1 : 0, ioSequence: [1], signature: '',
    };
  }

  /** Memory, disk and stamp go to the target; the source attests Quiesced with it. */
  private transfer(world: World): void {
    const { entry } = world.record;
    if (entry.phase !== 'preparing') return;
    const from = hostNames.indexOf(entry.owner as HostName);
    const to = hostNames.indexOf(entry.target as HostName);
    const source = world.hosts[from] as HostState;
    const target = world.hosts[to] as HostState;
    const ready = source.vm === 'paused' && source.seen === entry.epoch
      && source.stamp === entry.epoch && source.whole
      && (target.vm === 'none' || target.vm === 'ready');
    if (!ready) return;
    const number = world.moves.length;
    for (const whole of this.bounds.postCopy ? [true, false] : [true]) {
      const event: LedgerEvent = {
        kind: 'quiesced', vm, migration: moveIds[number - 1] as MigrationId, epoch: source.seen,
        record: this.recordOf(world, !whole, number),
      };
      const attested = this.propose(world, event, hostSeats[from] as Identity);
      if (attested === null) continue;
      const sameVmm = target.vm === 'ready' && target.rid === number;
      const sent = this.withHost(this.withHost(attested, from, { okr: false, go: false }), to, {
        vm: 'ready', mem: source.mem, rid: number, stamp: source.stamp, whole, disk: source.disk,
        gate: source.stamp, vmm: sameVmm ? target.vmm : vmmOf(world.nextVmm),
      });
      this.emit(`transfer ${whole ? 'whole' : 'partial'}`, { ...sent, nextVmm: world.nextVmm + 1 });
    }
  }

  private fill(world: World): void {
    const { entry } = world.record;
    const owner = hostNames.indexOf(entry.owner as HostName);
    const source = world.hosts[hostNames.indexOf(entry.previous as HostName)];
    const host = world.hosts[owner];
    if (entry.phase !== 'unsettled' || host?.vm !== 'run' || host.whole) return;
    if (source?.vm === 'paused') this.emit('fill', this.withHost(world, owner, { whole: true }));
  }

  /** What a host says to the ledger, believing what it has last seen. */
  private ledgerTalk(world: World, index: number): void {
    const host = world.hosts[index] as HostState;
    const seat = hostSeats[index] as Identity;
    const { entry, origin } = world.record;
    const name = hostNames[index] as HostName;
    if (host.vm === 'ready') this.ready(world, index);
    if (entry.owner === name && (host.seen !== entry.epoch || (entry.phase !== 'preparing' && !host.okr))) {
      this.emit(`${name} learns`, this.withHost(world, index, {
        seen: entry.epoch, okr: entry.phase !== 'preparing', go: false,
        smig: origin.kind === 'commit' ? world.moves.length : 0,
      }));
    }
    this.recordStart(world, index);
    if (host.vm === 'ready' && host.stamp !== host.seen && host.vmm !== null && host.rid > 0) {
      const next = this.propose(world, {
        kind: 'declined', vm, migration: moveIds[host.rid - 1] as MigrationId, epoch: host.seen,
        incarnation: host.vmm, signature: '',
      }, seat);
      if (next !== null && next !== world) {
        this.emit(`${name} declines`, this.withHost(next, index, {
          vm: 'none', okr: false, go: false, whole: true,
        }));
      }
    }
    if (host.vm === 'none' && entry.startedBy !== null && entry.epoch < this.bounds.epochMax) {
      const next = this.propose(world, {
        kind: 'restart', vm, epoch: host.seen, incarnation: entry.startedBy,
      }, seat);
      if (next !== null && next !== world) {
        this.emit(`${name} restarts cold`, { ...next, failovers: world.failovers + 1 });
      }
    }
    if (host.lease === 'exp') {
      const { verdict } = this.decide(viewOf(world), { kind: 'renew', vm, epoch: host.seen }, {
        proposer: seat, now: { wallMs: nowMs, steadyMs: nowMs }, checks: trusting,
      });
      if (verdict.accepted) this.emit(`${name} renews`, this.withHost(world, index, { lease: 'ok' }));
    }
  }

  private ready(world: World, index: number): void {
    const host = world.hosts[index] as HostState;
    const epoch = world.moves[host.rid - 1]?.epoch;
    if (epoch === undefined) return;
    const next = this.propose(world, {
      kind: 'ready', vm, migration: moveIds[host.rid - 1] as MigrationId, epoch,
      record: this.recordOf(world, !host.whole, host.rid),
    }, hostSeats[index] as Identity);
    this.tell(`${hostNames[index]} ready`, next, world);
  }

  private recordStart(world: World, index: number): void {
    const host = world.hosts[index] as HostState;
    if (host.go || !host.okr) return;
    const fromImage = (host.vm === 'ready' && host.smig === host.rid && host.smig !== 0)
      || host.vm === 'paused';
    const cold = host.vm === 'none' && host.smig === 0;
    if (!fromImage && !cold) return;
    const incarnation = cold ? vmmOf(world.nextVmm) : host.vmm as Incarnation;
    const next = this.propose(world, {
      kind: 'started', vm, epoch: host.seen, incarnation, imageStamp: cold ? null : host.stamp,
    }, hostSeats[index] as Identity);
    if (next === null) return;
    const violation = startViolation(world, index, cold);
    if (violation !== null) throw new Violation(violation);
    this.emit(`${hostNames[index]} records its start`, {
      ...this.withHost(next, index, { go: true, vmm: incarnation }), nextVmm: world.nextVmm + 1,
    });
  }

  /** Steps of a host alone. */
  private local(world: World, index: number): void {
    const host = world.hosts[index] as HostState;
    const { entry } = world.record;
    const name = hostNames[index] as HostName;
    const emit = (label: string, change: Partial<HostState>): void =>
      this.emit(`${name} ${label}`, this.withHost(world, index, change));
    const calm = { okr: false, go: false };
    if (host.vm === 'run' && world.ack < this.bounds.writeMax) {
      const next = this.withHost(world, index, { mem: world.ack + 1, disk: world.ack + 1 });
      this.emit(`${name} writes`, { ...next, ack: world.ack + 1 });
    }
    if (entry.phase === 'preparing' && entry.owner === name && host.vm === 'run'
      && host.stamp === entry.epoch) emit('pauses', { vm: 'paused', ...calm });
    if (host.lease === 'ok' && host.seen >= host.gate && host.go) {
      const run = { vm: 'run' as const, stamp: host.seen, gate: host.seen, ...calm };
      const isTarget = host.vm === 'ready' && host.okr && host.smig === host.rid && host.smig !== 0;
      if (isTarget || (host.vm === 'paused' && host.okr)) emit('starts its image', run);
      if (host.vm === 'none' && host.okr && host.smig === 0) {
        emit('starts cold', { ...run, mem: host.disk, whole: true });
      }
    }
    const images = world.hosts.some((other, n) => n !== index && other.vm === 'paused');
    if (host.vm !== 'none' && !host.whole && !images) {
      const lost = this.withHost(world, index, { vm: 'none', whole: true, ...calm });
      this.emit(`${name} loses its partial image`, {
        ...lost, lostPostCopy: world.lostPostCopy || entry.owner === name,
      });
    }
    if ((host.vm === 'paused' || host.vm === 'ready') && entry.phase === 'owned'
      && entry.owner !== name) emit('cleans up', { vm: 'none', whole: true, ...calm });
    const stale = host.stamp !== entry.lastStarted && !host.go
      && !(entry.lastStarted === entry.epoch && entry.diskHolder === name);
    if (host.vm === 'paused' && host.okr && stale && host.smig === 0 && entry.owner === name
      && host.seen === entry.epoch) emit('drops its stale image', { vm: 'none' });
    if (host.vm === 'run') emit('fences itself', { vm: 'paused', ...calm });
    if (host.lease === 'ok' && host.vm !== 'run') emit('lets its lease run out', { lease: 'exp' });
  }

  private faults(world: World, index: number): void {
    if (world.crashes >= this.bounds.crashMax) return;
    const forgotten = { seen: 0, smig: 0, okr: false, go: false };
    const crashed = this.withHost(world, index, {
      ...forgotten, vm: 'none', rid: 0, stamp: 0, mem: 0, whole: true, vmm: null,
    });
    this.emit(`${hostNames[index]} crashes`, { ...crashed, crashes: world.crashes + 1 });
    this.emit(`runner of ${hostNames[index]} restarts`, {
      ...this.withHost(world, index, forgotten), crashes: world.crashes + 1,
    });
  }
}

/** Visits every state within the bounds, or stops at the first violation with the way to it. */
export function explore(decide: Decide, bounds: Bounds): Exploration {
  const seen = new Set<string>();
  const parents: number[] = [];
  const labels: string[] = [];
  let frontier: { readonly world: World; readonly number: number }[] = [];
  let next: typeof frontier = [];
  let current = -1;
  let transitions = 0;
  const found = (violation: string | null, last: string | null): Exploration => {
    const trace: string[] = last === null ? [] : [last];
    for (let at = current; at > 0; at = parents[at] as number) trace.unshift(labels[at] as string);
    return {
      states: seen.size, transitions, ledgerSteps: steps.ledgerSteps, violation,
      trace: violation === null ? [] : trace,
    };
  };
  let lastLabel = '';
  const emit = (label: string, world: World): void => {
    transitions += 1;
    const key = keyOf(world);
    if (seen.has(key)) return;
    seen.add(key);
    lastLabel = label;
    parents.push(current);
    labels.push(label);
    const violation = stateViolation(world);
    if (violation !== null) throw new Violation(violation);
    if (seen.size > bounds.stateMax) throw new Violation(`more than ${bounds.stateMax} states`);
    next.push({ world, number: parents.length - 1 });
  };
  const steps = new Steps(decide, bounds, emit);
  try {
    emit('initial', initialWorld(decide, bounds));
    while (next.length > 0) {
      frontier = next;
      next = [];
      for (const { world, number } of frontier) {
        current = number;
        lastLabel = 'the next proposal';
        steps.from(world);
      }
    }
    const never = stepKinds.filter((kind) => steps.ledgerSteps[kind] === undefined);
    return found(never.length === 0 ? null : `never happens: ${never.join(', ')}`, null);
  } catch (error) {
    if (error instanceof Violation) return found(error.message, lastLabel);
    throw error;
  }
}
