/**
 * The order of the hand-over with both halves, the production ledger rules and fakes for VMMs and
 * bytes: whatever single step fails, at most one VMM runs, and in the end exactly one does.
 */
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import {
  hostName, incarnation, migrationId, requestId, vmName, type HostName, type Identity,
} from '../../../contracts/identity.ts';
import { CodedError } from '../../../contracts/failures.ts';
import { defaultPolicy } from '../../../contracts/migration.ts';
import type { Ledger, LedgerEvent, Verdict, VmEntry } from '../../../contracts/ownership.ts';
import type { HostFacts, VmSpec } from '../../../contracts/runner.ts';
import type { SourceSession, SourceSnapshot, TargetSession } from '../../data-plane/sessions.ts';
import { decide } from '../../group/ownership/decide.ts';
import { LedgerState } from '../../group/ownership/state.ts';
import type { PeerMessage } from './peer-messages.ts';
import type {
  FencedDisks, MoveWorld, PeerConversation, SourceVmm, TargetVmm, VmGates,
} from './ports.ts';
import { SourceMove } from './source-move.ts';
import { TargetMove } from './target-move.ts';

const vm = vmName('web');
const h1 = hostName('h1');
const h2 = hostName('h2');
const migration = migrationId(vm, requestId('r1'));
const control: Identity = { role: 'control', name: 'main' };
const log = pino({ level: 'silent' });

/** The production rules over a plain state; signatures are taken on trust here. */
class MemoryLedger {
  readonly state = new LedgerState(0);
  wallMs = 1000;
  /** Events of these kinds are refused or unanswered, as the test wants. */
  readonly broken = new Map<LedgerEvent['kind'], 'refuse' | 'silence-once'>();
  /** How long it answers nobody after Quiesced, by who asks, ms. */
  silenceMs: Readonly<Record<string, number>> = {};
  #quiescedMs = Infinity;

  proposeAs(proposer: Identity, events: readonly LedgerEvent[]): readonly Verdict[] {
    const verdicts: Verdict[] = [];
    for (const event of events) {
      if (this.broken.get(event.kind) === 'refuse') {
        return [...verdicts, {
          accepted: false, code: 'ownership/refused', reason: 'broken by the test', entry: null,
        }];
      }
      const { verdict, change } = decide(this.state, event, {
        proposer,
        now: { wallMs: this.wallMs, steadyMs: this.wallMs },
        checks: { isPublicKey: () => true, transferRecord: () => true, declined: () => true },
      });
      if (change !== null) this.state.apply(change);
      verdicts.push(verdict);
      if (event.kind === 'quiesced') this.#quiescedMs = this.wallMs;
      if (!verdict.accepted) break;
    }
    return verdicts;
  }

  entry(): VmEntry | null {
    return this.state.vm(vm)?.entry ?? null;
  }

  as(proposer: Identity): Ledger {
    const nothing = (): never => {
      throw new Error('not used');
    };
    const answer = <T>(value: () => T): Promise<T> => {
      const sinceMs = this.wallMs - this.#quiescedMs;
      const silent = sinceMs >= 0 && sinceMs < (this.silenceMs[proposer.name] ?? 0);
      return silent ? Promise.reject(new CodedError('ownership/unreachable', 'by the test'))
        : Promise.resolve(value());
    };
    return {
      propose: (events) => answer(() => this.proposeAs(proposer, events)),
      readVm: () => answer(() => this.entry()),
      listVms: nothing, listHosts: nothing, migrationEnd: nothing, watchVm: nothing,
      close: () => Promise.resolve(),
    };
  }
}

const facts = (name: string): HostFacts => ({
  version: 1, name, migrationAddress: '198.18.2.1', peerPort: 1, lanePort: 2, segments: [],
  accelerator: 'tcg', qemuVersion: '7.2', machineTypes: [], kernelRelease: '6.12',
  memoryBytes: 1, diskFreeBytes: 1, cpuFlags: [], features: [],
});
const spec: VmSpec = {
  version: 1, name: vm, vcpuCount: 1, memoryBytes: 2 ** 28, machineType: 'pc-i440fx-7.2',
  cpuModel: 'qemu64', disks: [], nics: [], failover: 'none',
  boot: { kind: 'kernel', kernel: '/k', initrd: null, commandLine: '' },
};

/** Two conversations joined back to back. */
function conversationPair(): { a: PeerConversation; b: PeerConversation; cut: () => void } {
  const gone = Promise.withResolvers<Error>();
  const cut = (): void => gone.resolve(new Error('cut by the test'));
  const side = (): PeerConversation & { deliver: (message: PeerMessage) => void; peer: unknown } => {
    const kept: PeerMessage[] = [];
    let listener: ((message: PeerMessage) => void) | null = null;
    return {
      peer: null,
      gone: gone.promise,
      deliver: (message) => (listener === null ? kept.push(message) : listener(message)),
      send(message) {
        queueMicrotask(() => (this.peer as { deliver: (m: PeerMessage) => void }).deliver(message));
      },
      listen(next) {
        listener = next;
        for (const message of kept.splice(0)) next(message);
      },
      compareClocks: () => Promise.resolve({ offsetMs: 0, errorMs: 0 }),
      close: cut,
    };
  };
  const a = side();
  const b = side();
  a.peer = b;
  b.peer = a;
  return { a, b, cut };
}

interface Faults {
  readonly failing?: string;
  /** As a peer's lanes refuse. */
  readonly refused?: string;
  /** Takes many turns of the event loop; its end is traced, too. */
  readonly slow?: string;
  readonly digestAtTarget?: string;
  readonly diskDigestAtTarget?: string;
  readonly ledger?: ReadonlyMap<LedgerEvent['kind'], 'refuse'>;
  readonly cutAt?: string;
  readonly silenceMs?: Readonly<Record<string, number>>;
}

/** A source and a target with one VM on the source; `trace` is the order of what happened. */
function stage(faults: Faults = {}) {
  const ledger = new MemoryLedger();
  const trace: string[] = [];
  const running = new Set<HostName>([h1]);
  let twoRan = false;
  const pair = conversationPair();
  const step = async (name: string): Promise<void> => {
    trace.push(name);
    if (faults.cutAt === name) pair.cut();
    if (faults.slow === name) {
      for (let turn = 0; turn < 50; turn += 1) await new Promise((go) => setImmediate(go));
      trace.push(`${name} done`);
    }
    if (faults.refused === name) throw new CodedError('link/refused', `${name} by the test`);
    if (faults.failing === name) throw new Error(`${name} fails by the test`);
    await Promise.resolve();
  };
  const run = (host: HostName): void => {
    running.add(host);
    twoRan ||= running.size > 1;
  };
  const publicKeyPem = 'key';
  const source = incarnation('1'.repeat(32));
  for (const name of ['h1', 'h2']) {
    ledger.proposeAs({ role: 'host', name }, [
      { kind: 'join-host', facts: facts(name), publicKeyPem },
    ]);
  }
  const before = ledger.proposeAs(control, [{ kind: 'create', vm, host: h1, spec }]);
  expect(before[0]?.accepted).toBe(true);
  ledger.proposeAs(control, [{ kind: 'desire', vm, epoch: 1, desired: 'running' }]);
  const started = ledger.proposeAs({ role: 'host', name: 'h1' }, [
    { kind: 'started', vm, epoch: 1, incarnation: source, imageStamp: null },
  ]);
  expect(started[0]).toMatchObject({ accepted: true });
  const prepared = ledger.proposeAs(control, [{
    kind: 'prepare', vm, migration, epoch: 1, target: h2, postCopyAllowed: false,
    commitDelegated: true,
  }]);
  expect(prepared[0]).toMatchObject({ accepted: true });
  ledger.silenceMs = faults.silenceMs ?? {};
  for (const [kind, how] of faults.ledger ?? []) ledger.broken.set(kind, how);

  const world = (host: HostName): MoveWorld => ({
    host,
    ledger: ledger.as({ role: 'host', name: host }),
    sign: (record) => ({ ...record, signature: 's' }),
    signDeclined: () => 's',
    note: async (_vm, note) => step(`${host}:note-${note?.stage ?? 'none'}`),
    nowMs: () => ledger.wallMs,
    sleep: async (ms) => {
      ledger.wallMs += ms;
      await new Promise((resolve) => setImmediate(resolve));
    },
  });
  const gates = (host: HostName): VmGates => ({
    enter: (epoch, disks) => {
      streams.set(host, { epoch, disks });
      return { leave: () => { streams.delete(host); } };
    },
    raise: async (epoch) => {
      await step(`${host}:raise-${epoch}`);
      const stream = streams.get(host);
      if (stream !== undefined && stream.epoch < epoch) await stream.disks.raiseDisks(epoch);
    },
    bindLease: (epoch) => step(`${host}:lease-${epoch}`),
    openNics: () => step(`${host}:open-nics`),
    closeNics: () => step(`${host}:close-nics`),
  });
  const streams = new Map<HostName, { readonly epoch: number; readonly disks: FencedDisks }>();
  const never = new Promise<CodedError>(() => undefined);
  const targetEnd = Promise.withResolvers<CodedError>();
  const memoryIn = Promise.withResolvers<void>();
  const snapshot = {
    round: 2, bytesPlanned: 1, bytesDone: 1, bytesOnWire: 1, ioSequence: [], diskBytes: 0,
    diskDigests: ['a'.repeat(32)],
    postCopyFaults: 0, dirtyBytesPerSecond: 0, sendBytesPerSecond: 0, etaMs: 0,
    estimatedDowntimeMs: 0, convergence: '',
  } as unknown as SourceSnapshot;
  const record = {
    digest: 'd'.repeat(32), missingDigest: '', missingPageCount: 0, ioSequence: [],
  };
  const sourceSession = {
    connect: () => step('connect'),
    startPreCopy: () => { trace.push('pre-copy'); },
    waitConverged: async () => {
      await step('converged');
      return { decision: 'switch-over', cause: 'met-aim', reason: 'fits' };
    },
    finishMemory: async () => {
      await step('finish-memory');
      memoryIn.resolve();
      return { ...record, lastPassPages: 1, scanMs: 0, sendMs: 0, holesMs: 0 };
    },
    snapshot: () => snapshot,
    checkImage: () => step('check-image'),
    raiseDisks: (epoch: number) => step(`h1:fence-${epoch}`),
    abort: () => step('session-abort'),
    close: () => Promise.resolve(),
  } as unknown as SourceSession;
  const compared = { pageCount: 1, wrongPageCount: 0, wallMs: 1, cpuMs: 1 };
  const targetSession = {
    waitMemoryIn: async () => {
      await memoryIn.promise;
      return { ...record, digest: faults.digestAtTarget ?? record.digest };
    },
    flushDisks: () => step('flush'),
    raiseDisks: (epoch: number) => step(`h2:fence-${epoch}`),
    waitWhole: () => Promise.resolve({ digest: record.digest }),
    beginCheck: () => { trace.push('check-target'); },
    waitChecked: () => Promise.resolve({
      source: compared, target: compared, writtenPageCount: 0, wrongPageCount: 0 }),
    endCheck: () => step('end-check'),
    snapshot: () => ({
      failure: null, ioSequence: [],
      diskDigests: [faults.diskDigestAtTarget ?? 'a'.repeat(32)],
    }),
    close: () => Promise.resolve(),
  } as unknown as TargetSession;
  const deviceIn = Promise.withResolvers<void>();
  const sourceVmm: SourceVmm = {
    incarnation: source, ended: never,
    stop: async () => {
      running.delete(h1);
      await step('stop');
      return { eventMs: ledger.wallMs };
    },
    copying: () => undefined,
    moveOver: () => undefined,
    sendDeviceState: async () => {
      await step('send-device-state');
      deviceIn.resolve();
    },
    resume: async () => {
      await step('source-resume');
      run(h1);
      return { eventMs: ledger.wallMs };
    },
    stamp: (epoch) => step(`source-stamp-${epoch}`),
  };
  const targetVmm: TargetVmm = {
    incarnation: incarnation('2'.repeat(32)), ended: targetEnd.promise,
    copying: () => undefined,
    loaded: async () => {
      await deviceIn.promise;
      await step('load');
    },
    closeExports: () => step('close-exports'),
    resume: async () => {
      await step('target-resume');
      run(h2);
      return { eventMs: ledger.wallMs };
    },
    pause: () => step('target-pause'),
    goOn: () => step('target-go-on'),
    announce: () => step('announce'),
    stamp: (epoch) => step(`target-stamp-${epoch}`),
    kill: async () => {
      trace.push('kill-target');
      running.delete(h2);
      return Promise.resolve(true);
    },
  };
  const common = { migration, vm, epoch: 1, log };
  const targetMove = new TargetMove({
    ...common, source: h1, world: world(h2), vmm: targetVmm, gates: gates(h2),
    session: targetSession, exactness: 'after-resume', checkAfterMs: 0, pageCount: 8,
  });
  targetMove.attach(pair.b);
  const sourceMove = new SourceMove({
    ...common, target: h2, policy: defaultPolicy, world: world(h1), vmm: sourceVmm,
    gates: gates(h1), session: sourceSession, openLink: () => Promise.resolve(pair.a),
    deviceStateSocket: '/d', diskSockets: [], isSuccessor: false,
    lanes: { address: '192.0.2.2', port: 1, count: 2, bandwidthBytesPerSecond: 0 },
    disks: {
      clear: () => Promise.resolve(),
      start: () => Promise.resolve(),
      synchronised: () => step('disks-synchronised'),
      setBandwidth: () => Promise.resolve(),
      tighten: () => step('tighten'),
      drained: () => step('drain'),
      cut: () => step('disks-cut'),
      cancel: () => step('disks-cancel'),
      progress: () => ({
        bytesTotal: 0, bytesDone: 0, bytesAtStart: 0, bytesAllocated: null,
        bytesPerSecondMax: 0, mode: 'write-blocking', said: '',
      }),
    },
  });
  return {
    ledger, trace, running, sourceMove, targetMove, targetVmmEnds: targetEnd.resolve,
    outcome: () => sourceMove.run(),
    get twoRan() { return twoRan; },
  };
}

describe('the hand-over', () => {
  test('lets go of a source whose VMM died after STOP: it can be started again', async () => {
    const dead = stage({ failing: 'source-resume', digestAtTarget: 'e'.repeat(32) });
    await expect(dead.outcome()).rejects.toThrow(/source-resume fails/);
    expect(dead.ledger.entry()).toMatchObject({ owner: h1, phase: 'owned' });
    expect(dead.sourceMove.isClosed).toBe(true);
    await expect(dead.sourceMove.abort('compensation')).resolves.toBeUndefined();
  });

  test('a target that has ended before its source came says why', async () => {
    const scene = stage();
    scene.targetVmmEnds(new CodedError('vmm/gone', 'killed by the test'));
    await scene.targetMove.outcome;
    const { a, b } = conversationPair();
    const heard: PeerMessage[] = [];
    a.listen((message) => heard.push(message));
    scene.targetMove.attach(b);
    await expect.poll(() => heard).toMatchObject([
      { kind: 'gave-up', code: 'migration/target-gone', detail: 'killed by the test' }]);
  });

  test('lanes that an ended target refuses are told by its own reason', async () => {
    const scene = stage({ refused: 'connect' });
    scene.targetVmmEnds(new CodedError('vmm/gone', 'killed by the test'));
    await expect(scene.sourceMove.syncDisks()).rejects.toMatchObject({
      code: 'migration/target-gone', detail: 'killed by the test' });
    const outcome = await scene.outcome();
    expect(outcome).toMatchObject({
      kind: 'failed', resumed: true, failure: { code: 'migration/target-gone' } });
    expect([...scene.running]).toEqual([h1]);
  });

  test.each(['disks-synchronised', 'converged', 'tighten'])(
    'does not begin over a link that was lost at %s: the next session goes on', async (cutAt) => {
      const moved = stage({ cutAt });
      const outcome = await moved.outcome();
      expect(outcome).toMatchObject({
        kind: 'failed', resumed: true, failure: { code: 'runner/session-lost' } });
      expect(moved.trace).not.toContain('stop');
      expect([...moved.running]).toEqual([h1]);
      expect(moved.ledger.entry()).toMatchObject({ phase: 'preparing', owner: h1 });
    });

  test('goes in the order of the protocol', async () => {
    const scene = stage();
    const [outcome] = await Promise.all([scene.outcome(), scene.targetMove.outcome]);
    expect(outcome.kind).toBe('handed-over');
    expect([...scene.running]).toEqual([h2]);
    expect(scene.ledger.entry()).toMatchObject({ phase: 'unsettled', owner: h2, lastStarted: 2 });
    const at = (name: string): number => {
      expect(scene.trace).toContain(name);
      return scene.trace.indexOf(name);
    };
    const order = ['h1:note-quiescing', 'stop', 'drain', 'flush', 'close-exports', 'h2:raise-2',
      'h2:fence-2', 'h2:lease-2', 'target-resume', 'h2:open-nics', 'announce'];
    expect(order.map(at)).toEqual(order.map(at).toSorted((a, b) => a - b));
    expect(at('target-stamp-2')).toBeGreaterThan(at('close-exports'));
    expect(at('target-stamp-2')).toBeLessThan(at('h2:lease-2'));
    expect(at('load')).toBeLessThan(at('h2:raise-2'));
  });

  test('gate and stamp are durable before the target goes on, whichever is slow', async () => {
    for (const slow of ['h2:raise-2', 'target-stamp-2']) {
      const scene = stage({ slow });
      await Promise.all([scene.outcome(), scene.targetMove.outcome]);
      const done = scene.trace.indexOf(`${slow} done`);
      expect(done).toBeGreaterThan(-1);
      expect(done).toBeLessThan(scene.trace.indexOf('target-resume'));
    }
  });

  test.each(['converged', 'connect', 'disks-synchronised', 'tighten'])(
    'a failure of %s before STOP leaves the VM running where it is', async (failing) => {
      const scene = stage({ failing });
      const outcome = await scene.outcome();
      expect(outcome).toMatchObject({ kind: 'failed', resumed: true });
      expect([...scene.running]).toEqual([h1]);
      expect(scene.trace).not.toContain('stop');
    },
  );

  test.each([
    'finish-memory', 'drain', 'send-device-state', 'load', 'flush', 'close-exports',
    'h2:raise-2', 'h2:fence-2', 'target-stamp-2', 'h2:lease-2',
    'target-resume',
  ])('a failure of %s after STOP takes the VM back to the source', async (failing) => {
    const scene = stage({ failing });
    const outcome = await scene.outcome();
    expect(outcome).toMatchObject({ kind: 'failed', resumed: true });
    expect([...scene.running]).toEqual([h1]);
    expect(scene.twoRan).toBe(false);
    expect(scene.ledger.entry()).toMatchObject({ phase: 'owned', owner: h1 });
    expect(scene.trace.indexOf('source-resume')).toBeGreaterThan(scene.trace.indexOf('stop'));
  });

  test('after a revert the image runs under the epoch after the commit', async () => {
    const scene = stage({ failing: 'h2:raise-2' });
    await scene.outcome();
    expect(scene.ledger.entry()).toMatchObject({ epoch: 3, lastStarted: 3, owner: h1 });
    // The old stream ends before the image goes on: nothing of it is written under the new epoch.
    const order = ['h1:raise-3', 'h1:fence-3', 'h1:lease-3', 'source-stamp-3', 'source-resume',
      'disks-cancel'];
    expect(scene.trace.filter((name) => order.includes(name))).toEqual(order);
  });

  test.each([
    { digestAtTarget: 'e'.repeat(32) }, { diskDigestAtTarget: 'e'.repeat(32) },
  ])('different digests never start the target: %o', async (difference) => {
    const scene = stage(difference);
    const outcome = await scene.outcome();
    expect(outcome).toMatchObject({ kind: 'failed', failure: { code: 'migration/digest' } });
    expect(scene.trace).not.toContain('target-resume');
    expect([...scene.running]).toEqual([h1]);
  });

  test.each(['commit', 'started'] as const)('a refused %s takes the VM back', async (kind) => {
    const scene = stage({ ledger: new Map([[kind, 'refuse']]) });
    const running = scene.outcome();
    await scene.targetMove.outcome;
    scene.ledger.broken.clear();
    expect(await running).toMatchObject({ kind: 'failed', resumed: true });
    expect([...scene.running]).toEqual([h1]);
    expect(scene.twoRan).toBe(false);
  });

  test.each(['stop', 'finish-memory', 'load', 'close-exports', 'h2:raise-2', 'target-resume'])(
    'a link cut at %s ends with exactly one running', async (cutAt) => {
      const scene = stage({ cutAt });
      await scene.outcome();
      expect(scene.running.size).toBe(1);
      expect(scene.twoRan).toBe(false);
      const owner = scene.ledger.entry()?.owner;
      expect([...scene.running]).toEqual([owner]);
    },
  );

  test('a start that is declined after a while takes the VM back', async () => {
    const scene = stage({ slow: 'target-resume', failing: 'target-resume' });
    expect(await scene.outcome()).toMatchObject({ kind: 'failed', resumed: true });
    expect([...scene.running]).toEqual([h1]);
    expect(scene.ledger.entry()).toMatchObject({ phase: 'owned', owner: h1 });
  });

  test('a ledger that was away gives the target its time again', async () => {
    // The target's connection is back 300 ms after the source's.
    const scene = stage({ silenceMs: { h1: 5_000, h2: 5_300 } });
    const [outcome] = await Promise.all([scene.outcome(), scene.targetMove.outcome]);
    expect(outcome.kind).toBe('handed-over');
    expect([...scene.running]).toEqual([h2]);
  });

  test('cancel before the switchover ends in one step, after it is refused', async () => {
    const scene = stage();
    const early = stage();
    await early.sourceMove.command({ kind: 'cancel', by: 'ann' });
    expect(await early.outcome()).toEqual({ kind: 'cancelled', by: 'ann' });
    expect([...early.running]).toEqual([h1]);
    await scene.outcome();
    await expect(scene.sourceMove.command({ kind: 'cancel', by: 'ann' }))
      .rejects.toMatchObject({ code: 'migration/past-return' });
  });
});
