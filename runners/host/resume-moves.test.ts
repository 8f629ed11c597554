/** What a runner that has just started does with the post-copy of the one before it. */
import { pino } from 'pino';
import { beforeEach, describe, expect, it } from 'vitest';
import { CodedError } from '../../contracts/failures.ts';
import { hostName, incarnation, migrationId, requestId, vmName } from '../../contracts/identity.ts';
import type { HostName } from '../../contracts/identity.ts';
import type { StepInput } from '../../contracts/migration.ts';
import type { TransferRecord, VmEntry } from '../../contracts/ownership.ts';
import type { FrozenRecord, SourceOptions, TargetOptions } from '../data-plane/sessions.ts';
import type { HostContext } from './host-context.ts';
import type { MoveNote } from './move/ports.ts';
import { SourceMoves } from './source-moves.ts';
import { TargetMoves } from './target-moves.ts';
import { Turns } from './turns.ts';
import { VmOperations } from './vm-operations.ts';

const [h1, h2, vm] = [hostName('h1'), hostName('h2'), vmName('web')];
const migration = migrationId(vm, requestId('r1'));
const record: TransferRecord = {
  version: 1, migration, epoch: 4, digest: 'd1', missingDigest: 'm1', missingPageCount: 7,
  ioSequence: [], signature: 's',
};
const step: StepInput = { version: 1, migration, vm, source: h1, target: h2, epoch: 4 };
const lanes = { address: '192.0.2.2', port: 7402, count: 3, bandwidthBytesPerSecond: 9 };
const started = {
  version: 1, vm, phase: 'unsettled', epoch: 5, owner: h2, previous: h1, lastStarted: 5, migration,
  quiesced: record, ready: record, startedBy: incarnation('0'.repeat(32)), desired: 'running',
} as unknown as VmEntry;

/** A host with one VM, whose engine notes what is opened and is told how sessions end. */
class Stand {
  entry: VmEntry = started;
  note: MoveNote | null = {
    version: 1, migration, side: 'source', epoch: 4, peer: h2, stage: 'handed-over', lanes };
  readonly targets: {
    options: TargetOptions; whole: PromiseWithResolvers<{ digest: string }>;
  }[] = [];
  readonly sources: {
    options: SourceOptions; record: FrozenRecord; served: PromiseWithResolvers<{ digest: string }>;
    failure: { code: string; detail: string } | null; closed: boolean;
  }[] = [];
  canResume = true;
  readonly moves: { readonly sources: SourceMoves; readonly targets: TargetMoves };

  constructor(host: HostName) {
    const context = {
      host, config: { tls: {} }, revoked: { entries: () => [] }, log: pino({ level: 'silent' }),
      hypervisor: {
        identity: async () => ({
          memoryPath: '/m/web.ram', uid: 7, incarnation: started.startedBy }),
        // A VMM whose vCPUs wait for pages does not answer.
        look: async () => host === h1
          ? { runState: 'paused', vmmPid: 99 } : { runState: 'failed', vmmPid: null },
        vmmPid: async () => 99,
        spec: async () => ({ memoryBytes: 4096 }),
        paths: () => ({ incomingSocket: '/r/in', runDirectory: '/r' }),
        forgetArrivals: async () => undefined,
      },
      lanes: { resume: (options: TargetOptions) => this.#target(options) },
      engine: {
        resumeSource: (options: SourceOptions, frozen: FrozenRecord) =>
          this.#source(options, frozen),
      },
      readNote: async () => this.note,
      world: {
        host, ledger: { readVm: async () => this.entry }, nowMs: () => 0,
        sleep: async () => undefined,
      },
    } as unknown as HostContext;
    const turns = new Turns();
    const vms = new VmOperations(context, turns);
    this.moves = {
      sources: new SourceMoves(context, turns, vms), targets: new TargetMoves(context, turns, vms),
    };
  }

  #target(options: TargetOptions): unknown {
    const whole = Promise.withResolvers<{ digest: string }>();
    whole.promise.catch(() => undefined);
    this.targets.push({ options, whole });
    return {
      waitMemoryIn: async () => {
        if (!this.canResume) throw new CodedError('engine/failed', 'it is of another move');
        return {};
      },
      waitWhole: () => whole.promise,
      snapshot: () => ({ state: 'post-copy', missingPages: 3 }),
      close: async () => whole.reject(new CodedError('migration/cancelled', 'closed')),
    };
  }

  #source(options: SourceOptions, frozen: FrozenRecord): unknown {
    const served = Promise.withResolvers<{ digest: string }>();
    const source = { options, record: frozen, served, failure: null, closed: false };
    this.sources.push(source);
    return {
      connect: async () => undefined,
      servePostCopy: () => served.promise,
      snapshot: () => ({ failure: source.failure }),
      close: async () => { source.closed = true; },
    };
  }
}

describe('a restarted target of a post-copy', () => {
  let stand: Stand;
  beforeEach(() => { stand = new Stand(h2); });

  it('verifies only when every page is there, whoever asks', async () => {
    let digest: string | null = null;
    const verified = stand.moves.targets.verify(step).then((answer) => { digest = answer.digest; });
    await expect.poll(() => stand.targets.length).toBe(1);
    expect(stand.targets[0]?.options).toMatchObject({
      migration, epoch: 4, sourceIdentity: 'novacron://host/h1', memoryPath: '/m/web.ram',
      vmmPid: 99,
    });
    await new Promise((done) => { setImmediate(done); });
    expect(digest).toBeNull();
    stand.targets[0]?.whole.resolve({ digest: 'late' });
    await verified;
    expect(digest).toBe('d1');
    expect(stand.targets).toHaveLength(1);
  });

  it('never verifies what it can not take up', async () => {
    stand.canResume = false;
    await expect(stand.moves.targets.verify(step)).rejects.toMatchObject({ code: 'engine/failed' });
    expect(stand.moves.targets.has(vm)).toBe(false);
  });

  it('takes a post-copy up again that has failed; the step is repeated', async () => {
    await stand.moves.targets.resume(stand.entry);
    const verified = stand.moves.targets.verify(step);
    stand.targets[0]?.whole.reject(new CodedError('link/refused', 'garbage'));
    await expect(verified).rejects.toMatchObject({ code: 'migration/not-here' });
    await stand.moves.targets.sweep();
    expect(stand.targets).toHaveLength(2);
  });
});

describe('a restarted source of a post-copy', () => {
  let stand: Stand;
  beforeEach(() => { stand = new Stand(h1); });

  it('serves the frozen image to where its note leads, once', async () => {
    await stand.moves.sources.resume(stand.entry);
    await stand.moves.sources.resume(stand.entry);
    expect(stand.sources).toHaveLength(1);
    expect(stand.sources[0]?.record).toEqual({
      digest: 'd1', missingDigest: 'm1', missingPageCount: 7 });
    expect(stand.sources[0]?.options).toMatchObject({
      migration, epoch: 4, laneCount: 3, bandwidthBytesPerSecond: 9, vmmPid: 99,
      target: { address: '192.0.2.2', port: 7402, identity: 'novacron://host/h2' },
    });
    expect(stand.moves.sources.has(vm)).toBe(true);
  });

  it('tries again when serving has failed, and lets go when it is settled', async () => {
    await stand.moves.sources.resume(stand.entry);
    const first = stand.sources[0];
    if (first !== undefined) first.failure = { code: 'link/refused', detail: 'garbage' };
    await stand.moves.sources.sweep();
    expect(stand.sources.map(({ closed }) => closed)).toEqual([true, false]);
    await stand.moves.sources.closeAll();
    expect(stand.sources.map(({ closed }) => closed)).toEqual([true, true]);
  });

  it('touches nothing without a note, or while the VM may come back', async () => {
    stand.entry = { ...started, lastStarted: 4 };
    await stand.moves.sources.resume(stand.entry);
    stand.note = null;
    await expect(stand.moves.sources.resume(started)).rejects.toMatchObject({ code: 'internal' });
    expect(stand.sources).toEqual([]);
  });
});
