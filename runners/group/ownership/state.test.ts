import { expect, test } from 'vitest';
import type { HostName, MigrationId, VmName } from '../../../contracts/identity.ts';
import type { MoveRecord, VmRecord } from './state.ts';
import { LedgerState, ledgerBounds } from './state.ts';

const vmRecord = (vm: string, epoch: number): VmRecord =>
  ({ version: 1, entry: { vm, epoch }, move: null } as unknown as VmRecord);
const ended = (vm: string, number: number, epoch: number): MoveRecord => ({
  migration: `migrate/${vm}/r${number}` as MigrationId, vm: vm as VmName, epoch,
  source: 'a' as HostName, target: 'b' as HostName, decision: 'abort', end: 'aborted',
  quiescedAtMs: null, startedAtMs: null, declinedBy: null,
});

test('ended moves are bounded, and those of a present epoch are never forgotten', () => {
  const state = new LedgerState(0);
  state.apply({ vm: vmRecord('present', 1), host: null, ended: null });
  state.apply({ vm: vmRecord('past', 9), host: null, ended: null });
  state.apply({ vm: null, host: null, ended: ended('present', 1, 1) });
  for (let number = 0; number < ledgerBounds.endedMoveCountMax + 10; number += 1) {
    state.apply({ vm: null, host: null, ended: ended('past', number, 3) });
    expect(state.endedMoves.size).toBeLessThanOrEqual(ledgerBounds.endedMoveCountMax + 1);
  }
  expect(state.ended('migrate/present/r1' as MigrationId)?.end).toBe('aborted');
  expect(state.ended('migrate/past/r0' as MigrationId)).toBeUndefined();
  expect(state.ended(`migrate/past/r${ledgerBounds.endedMoveCountMax + 9}` as MigrationId)?.end)
    .toBe('aborted');
});

test('a stored state is the same state, with every lease just renewed', () => {
  const state = new LedgerState(0);
  const vm = 'v' as VmName;
  state.apply({ vm: vmRecord('v', 1), host: null, ended: null, lease: { vm, renewedAtMs: 5 } });
  state.apply({ vm: null, host: null, ended: ended('v', 1, 1) });
  const again = LedgerState.restore(JSON.parse(JSON.stringify(state.store())), 77);
  expect(again.store()).toEqual(state.store());
  expect([state.leaseRenewedAtMs(vm), again.leaseRenewedAtMs(vm)]).toEqual([5, 77]);
});
