import { describe, expect, it } from 'vitest';
import { hostName, migrationId, requestId, vmName } from '../../../contracts/identity.ts';
import type { TransferRecord, VmEntry } from '../../../contracts/ownership.ts';
import { halfOfPostCopy, mayRemove } from './post-copy.ts';

const [source, target, other] = [hostName('h1'), hostName('h2'), hostName('h3')];
const vm = vmName('web');
const record = (missingPageCount: number): TransferRecord => ({
  version: 1, migration: migrationId(vm, requestId('r1')), epoch: 4, digest: 'd',
  missingDigest: 'm', missingPageCount, ioSequence: [], signature: 's',
});
const started = {
  version: 1, vm, phase: 'unsettled', epoch: 5, owner: target, previous: source, lastStarted: 5,
  migration: record(0).migration, quiesced: record(7), ready: record(7),
} as unknown as VmEntry;

describe('which half of a post-copy is left to a host', () => {
  it.each([
    ['the target of one that runs', started, target, 'target'],
    ['its source', started, source, 'source'],
    ['a bystander', started, other, null],
    ['the target before its start', { ...started, lastStarted: 4 }, target, 'target'],
    ['the source before it: the VM may come back', { ...started, lastStarted: 4 }, source, null],
    ['without missing pages', { ...started, ready: record(0) }, target, null],
    ['before Ready', { ...started, ready: null }, target, null],
    ['settled', { ...started, phase: 'owned' as const }, target, null],
    ['settled, at the source', { ...started, phase: 'owned' as const }, source, null],
  ])('%s', (_name, entry, host, half) => {
    expect(halfOfPostCopy(entry, host)).toBe(half);
  });
});

describe('what is left here of a VM whose migration to this host is over', () => {
  it.each([
    ['stays at the source of an unsettled move', started, source, false],
    ['stays before the other side has started, too', { ...started, lastStarted: 4 }, source, false],
    ['stays with the owner', started, target, false],
    ['goes from a bystander', started, other, true],
    ['goes once the move is settled', { ...started, phase: 'owned' as const }, source, true],
    ['goes when the ledger knows nothing of it', null, source, true],
  ])('%s', (_name, entry, host, may) => {
    expect(mayRemove(entry, host)).toBe(may);
  });
});
