/**
 * The ledger's table, rule by rule, as checks that run on any `decide`: the production one in
 * rules.test.ts, each mutant of it in mutants.test.ts. Signatures and times are real here.
 */
import assert from 'node:assert/strict';
import type { HostName, Identity, MigrationId } from '../../contracts/identity.ts';
import { hostName, vmName } from '../../contracts/identity.ts';
import type { LedgerEvent, Refusal, TransferRecord, VmEntry } from '../../contracts/ownership.ts';
import type { DiskSpec, VmSpec } from '../../contracts/runner.ts';
import type { decide as productionDecide } from '../../runners/group/ownership/decide.ts';
import { ed25519Checks, signDeclined } from '../../runners/group/ownership/signing.ts';
import { LedgerState } from '../../runners/group/ownership/state.ts';
import {
  asHost, control, hostA, hostB, hostKey, joinHost, moveId, record, spec, vm, vmm,
} from '../support/ledger-fixtures.ts';

export type Decide = typeof productionDecide;
const operator: Identity = { role: 'operator', name: 'op' };
const a = asHost(hostA);
const b = asHost(hostB);
const m = moveId('r1');

/** A ledger in memory whose clock the check sets. */
class Bench {
  readonly state = new LedgerState(0);
  wallMs = 10_000;
  steadyMs = 0;
  private readonly decide: Decide;

  constructor(decide: Decide) {
    this.decide = decide;
  }

  ask(event: LedgerEvent, proposer: Identity) {
    const { verdict, change } = this.decide(this.state, event, {
      proposer, now: { wallMs: this.wallMs, steadyMs: this.steadyMs }, checks: ed25519Checks,
    });
    if (change !== null) this.state.apply(change);
    return verdict;
  }
  yes(event: LedgerEvent, proposer: Identity): VmEntry | null {
    const verdict = this.ask(event, proposer);
    assert.ok(verdict.accepted, `${event.kind}: ${JSON.stringify(verdict)}`);
    assert.ok(verdict.changed || event.kind === 'renew', `${event.kind} did nothing`);
    return verdict.entry;
  }
  repeat(event: LedgerEvent, proposer: Identity): void {
    const before = JSON.stringify(this.state.store());
    const verdict = this.ask(event, proposer);
    assert.ok(verdict.accepted && !verdict.changed, `repeat ${event.kind}: ${JSON.stringify(verdict)}`);
    assert.equal(JSON.stringify(this.state.store()), before, `the repeat of ${event.kind} changed it`);
  }
  no(event: LedgerEvent, proposer: Identity, code: Refusal['code'] = 'ownership/refused'): void {
    const before = JSON.stringify(this.state.store());
    const verdict = this.ask(event, proposer);
    assert.ok(!verdict.accepted, `${event.kind} by ${proposer.role}/${proposer.name} was accepted`);
    assert.equal(verdict.code, code, verdict.reason);
    assert.equal(JSON.stringify(this.state.store()), before);
  }
  entry(): VmEntry {
    const entry = this.state.vm(vm)?.entry;
    assert.ok(entry);
    return entry;
  }
}

const sharedDisk: DiskSpec = {
  name: 'data', format: 'raw', sizeBytes: 1 << 20, sourceImage: null,
  volume: {
    kind: 'shared', name: 'data', server: { name: 'store', address: '198.18.0.3', port: 7500 },
  },
};
const localDisk: DiskSpec = {
  name: 'root', format: 'raw', sizeBytes: 1 << 20, sourceImage: null, volume: 'local',
};

const start = (epoch: number, vmmDigit: number, imageStamp: number | null): LedgerEvent =>
  ({ kind: 'started', vm, epoch, incarnation: vmm(vmmDigit), imageStamp });
const prepare = (
  over: Partial<Extract<LedgerEvent, { kind: 'prepare' }>> = {},
): LedgerEvent => ({
  kind: 'prepare', vm, migration: m, epoch: 1, target: hostB, postCopyAllowed: false,
  commitDelegated: true, ...over,
});
const attest = (
  kind: 'quiesced' | 'ready', host: HostName, over: Partial<TransferRecord> = {}, of: MigrationId = m,
): LedgerEvent => {
  const epoch = over.epoch ?? 1;
  return {
    kind, vm, migration: of, epoch,
    record: record({ migration: of, epoch, ...over }, hostKey(host).privateKey),
  };
};
const move = (epoch: number, migration = m) => ({ vm, migration, epoch });
const commit = { kind: 'commit', ...move(1) } as const;
const abort = { kind: 'abort', ...move(1), reason: 'test' } as const;
const revert = { kind: 'revert', ...move(2), reason: 'test' } as const;
const settle = { kind: 'settle', ...move(2) } as const;
const failover = (epoch: number, to: HostName, fenceProof: string | null): LedgerEvent =>
  ({ kind: 'failover', vm, epoch, to, fenceProof });
const declined = (vmmDigit: number): LedgerEvent => {
  const statement = { ...move(2), incarnation: vmm(vmmDigit) };
  return {
    kind: 'declined', ...statement, signature: signDeclined(statement, hostKey(hostB).privateKey),
  };
};

function created(decide: Decide, over: Partial<VmSpec> = {}): Bench {
  const bench = new Bench(decide);
  bench.yes(joinHost(hostA), a);
  bench.yes(joinHost(hostB), operator);
  bench.yes({ kind: 'create', vm, host: hostA, spec: spec(over) }, control);
  bench.yes({ kind: 'desire', vm, epoch: 1, desired: 'running' }, control);
  return bench;
}
function running(decide: Decide, over: Partial<VmSpec> = {}): Bench {
  const bench = created(decide, over);
  bench.yes(start(1, 1, null), a);
  return bench;
}
function prepared(decide: Decide, over: Partial<Extract<LedgerEvent, { kind: 'prepare' }>> = {}): Bench {
  const bench = running(decide);
  bench.yes(prepare(over), control);
  return bench;
}
function attested(decide: Decide, over: Partial<Extract<LedgerEvent, { kind: 'prepare' }>> = {}): Bench {
  const bench = prepared(decide, over);
  bench.yes(attest('quiesced', hostA), a);
  bench.yes(attest('ready', hostB), b);
  return bench;
}
function committed(decide: Decide): Bench {
  const bench = attested(decide);
  bench.yes(commit, b);
  return bench;
}

/** Each check throws when `decide` breaks its rule. */
export const rules: Readonly<Record<string, (decide: Decide) => void>> = {
  'create: control only, name free, spec of that name, host known and not cordoned': (decide) => {
    const bench = created(decide);
    const event: LedgerEvent = { kind: 'create', vm, host: hostA, spec: spec() };
    bench.repeat(event, control);
    bench.no(event, a, 'ownership/role');
    bench.no({ ...event, host: hostB }, control, 'vm/exists');
    const other = vmName('vm-2');
    bench.no({ ...event, vm: other }, control, 'input/invalid');
    const of = { kind: 'create' as const, vm: other, spec: spec({ name: other }) };
    bench.no({ ...of, host: hostName('nowhere') }, control, 'host/unknown');
    bench.yes({ kind: 'cordon-host', host: hostB, cordoned: true }, operator);
    bench.no({ ...of, host: hostB }, control, 'host/cordoned');
  },
  'delete: stopped, owned, at its epoch; the tombstone keeps the epoch': (decide) => {
    const bench = created(decide);
    const event: LedgerEvent = { kind: 'delete', vm, epoch: 1 };
    bench.no(event, control);
    bench.yes({ kind: 'desire', vm, epoch: 1, desired: 'stopped' }, control);
    bench.no({ ...event, epoch: 2 }, control);
    bench.no(event, a, 'ownership/role');
    bench.yes(event, control);
    bench.repeat(event, control);
    bench.no(start(1, 1, null), a, 'vm/unknown');
    assert.equal(bench.yes({ kind: 'create', vm, host: hostB, spec: spec() }, control)?.epoch, 2);
    bench.no(event, control);
  },
  'started: owner, epoch, desired, and one incarnation an epoch': (decide) => {
    const bench = created(decide);
    bench.no(start(1, 1, null), b, 'ownership/role');
    bench.no(start(1, 1, null), control, 'ownership/role');
    bench.no(start(2, 1, null), a);
    bench.no(start(1, 1, 1), a);
    bench.no(start(1, 1, 0), a);
    bench.yes({ kind: 'desire', vm, epoch: 1, desired: 'stopped' }, a);
    bench.no(start(1, 1, null), a);
    bench.no({ kind: 'desire', vm, epoch: 1, desired: 'running' }, a, 'ownership/role');
    bench.yes({ kind: 'desire', vm, epoch: 1, desired: 'running' }, control);
    bench.yes(start(1, 1, null), a);
    bench.repeat(start(1, 1, null), a);
    bench.repeat(start(1, 1, 1), a);
    bench.no(start(1, 2, null), a);
  },
  'started: not while preparing, and again after an abort': (decide) => {
    const bench = prepared(decide);
    bench.no(start(1, 1, 1), a);
    bench.yes(abort, control);
    bench.repeat(start(1, 1, 1), a);
  },
  'started: only an image of the last start, a cold start only at the disk': (decide) => {
    const bench = committed(decide);
    bench.no(start(2, 2, 0), b);
    bench.no(start(2, 2, 2), b);
    bench.no(start(2, 2, null), b);
    bench.no(start(1, 2, 1), b);
    bench.no(start(2, 1, 1), a, 'ownership/role');
    const entry = bench.yes(start(2, 2, 1), b);
    assert.deepEqual(
      [entry?.lastStarted, entry?.startedBefore, entry?.diskHolder, entry?.phase],
      [2, 1, hostB, 'unsettled']);
  },
  'prepare: control, epoch, another known host that is not cordoned, one at a time': (decide) => {
    const bench = running(decide);
    bench.no(prepare(), a, 'ownership/role');
    bench.no(prepare(), operator, 'ownership/role');
    bench.no(prepare({ epoch: 2 }), control);
    bench.no(prepare({ target: hostA }), control, 'migration/same-host');
    bench.no(prepare({ target: hostName('nowhere') }), control, 'host/unknown');
    bench.no({ ...prepare(), vm: vmName('nobody') } as LedgerEvent, control, 'vm/unknown');
    bench.no(prepare({ migration: 'migrate/other/r1' as MigrationId }), control, 'input/invalid');
    bench.yes({ kind: 'cordon-host', host: hostB, cordoned: true }, control);
    bench.no(prepare(), control, 'host/cordoned');
    bench.yes({ kind: 'cordon-host', host: hostB, cordoned: false }, control);
    bench.yes(prepare(), control);
    bench.repeat(prepare(), control);
    bench.no(prepare({ migration: moveId('r2') }), control, 'migration/open');
  },
  'an ended migration id never opens again': (decide) => {
    const bench = prepared(decide);
    bench.yes(abort, control);
    bench.repeat(abort, control);
    bench.no(prepare(), control);
    bench.no(commit, control);
    bench.yes(prepare({ migration: moveId('r2') }), control);
    bench.no(prepare(), control);
    bench.no(commit, control);
    bench.repeat(abort, control);
    assert.equal(bench.entry().phase, 'preparing');
    assert.equal(bench.state.ended(m)?.end, 'aborted');
  },
  'quiesced and ready: by source and target, signed by them, about this move': (decide) => {
    const bench = prepared(decide);
    bench.no(attest('quiesced', hostA), b, 'ownership/role');
    bench.no(attest('quiesced', hostA), control, 'ownership/role');
    bench.no(attest('ready', hostB), a, 'ownership/role');
    bench.no(attest('quiesced', hostB), a);
    bench.no(attest('ready', hostA), b);
    const good = attest('quiesced', hostA) as Extract<LedgerEvent, { kind: 'quiesced' }>;
    bench.no({ ...good, record: { ...good.record, digest: 'd2' } }, a);
    bench.no({ ...good, record: { ...good.record, signature: '' } }, a);
    bench.no({ ...good, epoch: 2 }, a);
    bench.no(attest('quiesced', hostA, { epoch: 2 }), a);
    bench.no({ ...good, record: record({ migration: moveId('r9'), epoch: 1 }, hostKey(hostA).privateKey) }, a);
    bench.no(attest('quiesced', hostA, { ioSequence: [] }), a);
    bench.yes(good, a);
    bench.repeat(good, a);
    bench.no(attest('quiesced', hostA, { digest: 'd2' }), a);
  },
  'ready equals quiesced in everything, whichever comes first': (decide) => {
    const different: Partial<TransferRecord>[] = [
      { digest: 'd2' }, { ioSequence: [8] }, { missingPageCount: 1, missingDigest: 'x' },
    ];
    for (const over of different) {
      const bench = prepared(decide, { postCopyAllowed: true });
      bench.yes(attest('quiesced', hostA), a);
      bench.no(attest('ready', hostB, over), b);
      bench.no(commit, control);
      const reversed = prepared(decide, { postCopyAllowed: true });
      reversed.yes(attest('ready', hostB), b);
      reversed.no(attest('quiesced', hostA, over), a);
      reversed.no(commit, control);
    }
  },
  'missing pages need the consent given with prepare': (decide) => {
    const missing = { missingPageCount: 3, missingDigest: 'x' };
    prepared(decide).no(attest('quiesced', hostA, missing), a);
    const bench = prepared(decide, { postCopyAllowed: true });
    bench.no(attest('quiesced', hostA, { missingPageCount: 3 }), a);
    bench.no(attest('quiesced', hostA, { missingDigest: 'x' }), a);
    bench.yes(attest('quiesced', hostA, missing), a);
  },
  'commit: both records, right epoch, control or target': (decide) => {
    const bench = prepared(decide);
    bench.no(commit, control);
    bench.yes(attest('quiesced', hostA), a);
    bench.no(commit, control);
    bench.yes(attest('ready', hostB), b);
    bench.no({ ...commit, epoch: 2 }, control);
    bench.no(commit, a, 'ownership/role');
    bench.no(commit, operator, 'ownership/role');
    const entry = bench.yes(commit, control);
    assert.deepEqual(
      [entry?.phase, entry?.epoch, entry?.owner, entry?.previous, entry?.lastStarted],
      ['unsettled', 2, hostB, hostA, 1]);
    bench.repeat(commit, control);
    bench.repeat(commit, b);
    bench.no(abort, control);
    bench.no(abort, a);
  },
  'commit by the target: at once when delegated, else after its patience': (decide) => {
    attested(decide).yes(commit, b);
    const bench = attested(decide, { commitDelegated: false });
    bench.no(commit, b, 'ownership/role');
    bench.wallMs += 1_999;
    bench.no(commit, b, 'ownership/role');
    bench.wallMs += 1;
    bench.yes(commit, b);
  },
  'abort: control any time, the source before quiesced or after its patience': (decide) => {
    attested(decide).yes(abort, control);
    prepared(decide).yes(abort, a);
    prepared(decide).no(abort, b, 'ownership/role');
    prepared(decide).no({ ...abort, epoch: 2 }, control);
    const bench = prepared(decide);
    bench.yes(attest('quiesced', hostA), a);
    bench.no(abort, a, 'ownership/role');
    bench.wallMs += 1_999;
    bench.no(abort, a, 'ownership/role');
    bench.wallMs += 1;
    bench.yes(abort, a);
    assert.deepEqual([bench.entry().phase, bench.entry().epoch], ['owned', 1]);
    const ready = attested(decide);
    ready.no(abort, a, 'ownership/role');
    ready.wallMs += 2_000;
    ready.yes(abort, a);
  },
  'revert: only before the start; the source gets a new epoch and its image': (decide) => {
    const bench = committed(decide);
    bench.no(revert, b, 'ownership/role');
    bench.no({ ...revert, epoch: 1 }, control);
    const entry = bench.yes(revert, a);
    assert.deepEqual([entry?.phase, entry?.epoch, entry?.owner, entry?.previous], ['owned', 3, hostA, hostB]);
    bench.repeat(revert, control);
    bench.no(start(2, 2, 1), b, 'ownership/role');
    bench.no(commit, control);
    bench.yes(start(3, 1, 1), a);
    const started = committed(decide);
    started.yes(start(2, 2, 1), b);
    started.no(revert, control);
    started.no(revert, a);
  },
  'declined: signed by the target, for its incarnation; then as if never started': (decide) => {
    const bench = committed(decide);
    bench.no(declined(2), b);
    bench.yes(start(2, 2, 1), b);
    bench.no(declined(2), a, 'ownership/role');
    bench.no(declined(2), control, 'ownership/role');
    bench.no(declined(3), b);
    bench.no({ ...declined(2), signature: 'AAAA' } as LedgerEvent, b);
    const entry = bench.yes(declined(2), b);
    assert.deepEqual([entry?.lastStarted, entry?.diskHolder, entry?.startedBy], [1, hostA, null]);
    bench.repeat(declined(2), b);
    bench.no(settle, control);
    // A start that was on its way when the VMM died.
    bench.no(start(2, 2, 1), b);
    bench.yes(revert, control);
    bench.repeat(declined(2), b);
    bench.yes(start(3, 1, 1), a);
  },
  'settle: started, control; the target after a limit; nothing takes it back': (decide) => {
    const bench = committed(decide);
    bench.no(settle, control);
    bench.yes(start(2, 2, 1), b);
    bench.no(settle, a, 'ownership/role');
    bench.no(settle, b, 'ownership/role');
    bench.no({ ...settle, epoch: 1 }, control);
    bench.wallMs += 30_000;
    bench.yes(settle, b);
    bench.repeat(settle, control);
    bench.no(revert, control);
    bench.no(declined(2), b);
    bench.no(abort, control);
    assert.equal(bench.state.ended(m)?.end, 'committed');
  },
  'settle: with missing pages only when none is missing any more': (decide) => {
    const bench = prepared(decide, { postCopyAllowed: true });
    const missing = { missingPageCount: 3, missingDigest: 'x' };
    bench.yes(attest('quiesced', hostA, missing), a);
    bench.yes(attest('ready', hostB, missing), b);
    bench.yes(commit, b);
    bench.yes(start(2, 2, 1), b);
    bench.no(settle, control);
    bench.no({ ...settle, missingPageCount: 1 }, control);
    bench.yes({ ...settle, missingPageCount: 0 }, control);
  },
  'restart: the owner, for the incarnation that started; a cold start under a new epoch': (decide) => {
    const bench = running(decide);
    const restart: LedgerEvent = { kind: 'restart', vm, epoch: 1, incarnation: vmm(1) };
    bench.no(restart, b, 'ownership/role');
    bench.no({ ...restart, epoch: 2 }, a);
    bench.no({ ...restart, incarnation: vmm(2) }, a);
    const entry = bench.yes(restart, a);
    assert.deepEqual([entry?.phase, entry?.epoch, entry?.owner], ['owned', 2, hostA]);
    bench.repeat(restart, a);
    bench.yes(start(2, 2, null), a);
    prepared(decide).no(restart, a, 'migration/open');
    const moved = committed(decide);
    moved.no({ ...restart, epoch: 2, incarnation: vmm(2) }, b);
    moved.yes(start(2, 2, 1), b);
    moved.yes({ ...restart, epoch: 2, incarnation: vmm(2) }, b);
    assert.equal(moved.state.ended(m)?.end, 'committed');
    moved.yes(start(3, 3, null), b);
  },
  'failover: only to the disk, only after the lease or with a fence proof': (decide) => {
    const bench = running(decide, { failover: 'automatic' });
    bench.no(failover(1, hostA, null), a, 'ownership/role');
    bench.no(failover(1, hostA, null), control, 'ownership/lease');
    bench.no(failover(1, hostA, ' '), control, 'ownership/lease');
    bench.steadyMs += 13_120;
    bench.no(failover(1, hostA, null), control, 'ownership/lease');
    bench.steadyMs += 1;
    bench.no(failover(2, hostA, null), control);
    bench.no(failover(1, hostB, null), control);
    bench.no(failover(1, hostB, 'power is off'), operator);
    bench.yes(failover(1, hostA, null), control);
    bench.repeat(failover(1, hostA, null), control);
    bench.no(failover(2, hostA, null), control, 'ownership/lease');
    assert.deepEqual([bench.entry().phase, bench.entry().epoch], ['owned', 2]);
  },
  'failover: a renewed lease protects, the silence of others never counts': (decide) => {
    const bench = running(decide, { failover: 'automatic' });
    bench.steadyMs += 13_000;
    bench.no({ kind: 'renew', vm, epoch: 2 }, a);
    bench.no({ kind: 'renew', vm, epoch: 1 }, b, 'ownership/role');
    bench.yes({ kind: 'renew', vm, epoch: 1 }, a);
    bench.steadyMs += 13_000;
    bench.no(failover(1, hostA, null), control, 'ownership/lease');
    const unbound = running(decide);
    unbound.steadyMs += 1e9;
    unbound.no(failover(1, hostA, null), control);
    unbound.yes(failover(1, hostA, 'power is off'), operator);
  },
  'failover: on shared volumes to any host, where only a cold start is taken': (decide) => {
    const bench = running(decide, { failover: 'automatic', disks: [sharedDisk] });
    bench.no(failover(1, hostB, null), control, 'ownership/lease');
    bench.steadyMs += 13_121;
    bench.no(failover(1, hostName('nowhere'), null), control, 'host/unknown');
    bench.yes(failover(1, hostB, null), control);
    bench.repeat(failover(1, hostB, null), control);
    bench.no(failover(1, hostA, null), control);
    assert.deepEqual([bench.entry().owner, bench.entry().previous], [hostB, hostA]);
    bench.no(start(1, 1, 1), a, 'ownership/role');
    bench.no(start(2, 2, 1), b);
    bench.yes(start(2, 2, null), b);
    assert.equal(bench.entry().diskHolder, hostB);
    const mixed = running(decide, { failover: 'automatic', disks: [sharedDisk, localDisk] });
    mixed.steadyMs += 13_121;
    mixed.no(failover(1, hostB, null), control);
    const firmware = running(decide, {
      failover: 'automatic', disks: [sharedDisk],
      boot: { kind: 'disk', firmware: 'uefi', cloudInitUserData: null },
    });
    firmware.steadyMs += 13_121;
    firmware.no(failover(1, hostB, null), control);
  },
  'a move counts the disks that it copies, and no shared one': (decide) => {
    const bench = running(decide, { disks: [sharedDisk, localDisk] });
    bench.yes(prepare(), control);
    bench.no(attest('quiesced', hostA, { ioSequence: [0, 0] }), a);
    bench.yes(attest('quiesced', hostA, { ioSequence: [4] }), a);
  },
  'failover: an open move ends as its phase says': (decide) => {
    const preparing = attested(decide);
    preparing.yes(failover(1, hostA, 'fenced'), control);
    assert.equal(preparing.state.ended(m)?.end, 'aborted');
    preparing.no(commit, control);
    const unstarted = committed(decide);
    unstarted.no(failover(2, hostB, 'fenced'), control);
    unstarted.yes(failover(2, hostA, 'fenced'), control);
    assert.equal(unstarted.state.ended(m)?.end, 'reverted');
    const started = committed(decide);
    started.yes(start(2, 2, 1), b);
    started.no(failover(2, hostA, 'fenced'), control);
    started.yes(failover(2, hostB, 'fenced'), control);
    assert.equal(started.state.ended(m)?.end, 'committed');
    assert.equal(started.entry().epoch, 3);
  },
  'hosts: a host joins as itself, with an Ed25519 key': (decide) => {
    const bench = created(decide);
    bench.repeat(joinHost(hostA), a);
    bench.no(joinHost(hostA), b, 'ownership/role');
    bench.no({ ...joinHost(hostA), publicKeyPem: 'x' } as LedgerEvent, a, 'input/invalid');
    bench.no({ kind: 'cordon-host', host: hostA, cordoned: true }, a, 'ownership/role');
    bench.no({ kind: 'cordon-host', host: hostName('nowhere'), cordoned: true }, operator, 'host/unknown');
    bench.yes({ kind: 'cordon-host', host: hostA, cordoned: true }, operator);
    bench.repeat({ kind: 'cordon-host', host: hostA, cordoned: true }, control);
    bench.yes({ ...joinHost(hostA), publicKeyPem: hostKey('other').publicKeyPem } as LedgerEvent, a);
    assert.equal(bench.state.host(hostA)?.cordoned, true);
  },
};
