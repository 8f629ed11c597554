import { describe, expect, it } from 'vitest';
import { migrationId, requestId, vmName } from '../../contracts/identity.ts';
import type { Ledger, LedgerEvent, VmEntry } from '../../contracts/ownership.ts';
import { lateEvents, sayLate, sayTwice } from './repeats.ts';

const vm = vmName('web');
const move = { vm, migration: migrationId(vm, requestId('r1')), epoch: 1, target: 'h2' };

/** Answers `changed` for those kinds alone, and an entry that counts them. */
function ledgerThatTakes(kinds: readonly LedgerEvent['kind'][]) {
  const said: string[] = [];
  let epoch = 1;
  const ledger = {
    propose: (events: readonly LedgerEvent[]) => Promise.resolve(events.map(({ kind }) => {
      said.push(kind);
      const changed = kinds.includes(kind);
      if (changed) epoch += 1;
      return { accepted: true, changed, index: 1, entry: null } as const;
    })),
    readVm: () => Promise.resolve({ epoch } as unknown as VmEntry),
  } as unknown as Ledger;
  return { ledger, said };
}

describe('requests that come again', () => {
  it('are all that control may say, with the epochs of the move', () => {
    expect(lateEvents(move).map((event) => [event.kind, 'epoch' in event ? event.epoch : null]))
      .toEqual([['prepare', 1], ['commit', 1], ['abort', 1], ['revert', 2], ['settle', 2]]);
  });
  it('are right when they change nothing', async () => {
    const { ledger, said } = ledgerThatTakes([]);
    expect(await sayTwice(ledger, move)).toBeNull();
    expect(await sayLate(ledger, move)).toBeNull();
    expect(said).toEqual(['prepare', 'prepare', 'prepare', 'commit', 'abort', 'revert', 'settle']);
  });
  it('are told when one changes something', async () => {
    expect(await sayTwice(ledgerThatTakes(['prepare']).ledger, move)).toMatch(/prepare, prepare/);
    expect(await sayLate(ledgerThatTakes(['revert']).ledger, move)).toMatch(/late revert changed/);
  });
});
