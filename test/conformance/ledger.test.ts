/** What every form of the ledger does: in memory, in a directory, behind the server. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { LedgerEvent, VmEntry } from '../../contracts/ownership.ts';
import { openLocalLedger } from '../../runners/ledger/local-ledger.ts';
import {
  asHost, control, hostA, hostB, hostKey, joinHost, moveId, must, record, runningVm, servedLedger,
  spec, vm, vmm,
} from '../support/ledger-fixtures.ts';
import type { LedgerSeats } from '../support/ledger-fixtures.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

interface Form extends LedgerSeats {
  close(): Promise<void>;
}
const identities = [control, asHost(hostA), asHost(hostB), { role: 'lab', name: 'lab' } as const];

const forms: Record<string, () => Promise<Form>> = {
  'in memory': () => openLocalLedger({ dir: null }),
  'in a directory': async () => {
    const dir = await mkdtemp(join(tmpdir(), 'novacron-ledger-'));
    const local = await openLocalLedger({ dir: join(dir, 'state') });
    return {
      as: local.as,
      close: async () => {
        await local.close();
        await rm(dir, { recursive: true, force: true });
      },
    };
  },
  'behind the server': () => servedLedger(identities),
};

for (const [name, open] of Object.entries(forms)) {
  describe(`ledger ${name}`, () => {
    let form: Form;
    beforeAll(async () => {
      form = await open();
      await runningVm(form);
    });
    afterAll(() => form.close());
    const as = (identity: (typeof identities)[number]) => form.as(identity);
    const a = () => as(asHost(hostA));
    const b = () => as(asHost(hostB));
    const m = moveId('r1');

    test('reads what was proposed', async () => {
      const entry = await a().readVm(vm);
      expect(entry).toMatchObject({ phase: 'owned', epoch: 1, owner: hostA, lastStarted: 1 });
      expect(await a().readVm(vmName('nobody'))).toBeNull();
      expect((await a().listVms()).map((one) => one.vm)).toEqual([vm]);
      expect((await a().listHosts()).map(({ facts }) => facts.name)).toEqual([hostA, hostB]);
      expect(await a().migrationEnd(m)).toBeNull();
    });

    test('says how long a lease is, and since when a host is silent', async () => {
      const [renewed, again] = await a().propose([
        { kind: 'renew', vm, epoch: 1 }, { kind: 'desire', vm, epoch: 1, desired: 'stopped' },
      ]);
      expect(renewed).toMatchObject({ accepted: true, leaseTtlMs: timing.leaseTtlMs });
      expect(again).not.toHaveProperty('leaseTtlMs');
      await as(control).propose([{ kind: 'desire', vm, epoch: 1, desired: 'running' }]);
      const silence = async (host: string): Promise<number> =>
        (await as(control).listHosts()).find(({ facts }) => facts.name === host)?.silentForMs ?? -1;
      const before = await silence(hostB);
      await vi.waitFor(async () => expect(await silence(hostB)).toBeGreaterThan(before));
      // Whatever a host proposes is its sign of life.
      await vi.waitFor(async () => {
        await a().propose([{ kind: 'renew', vm, epoch: 1 }]);
        expect(await silence(hostA)).toBeLessThan(await silence(hostB));
      });
    });

    test('refuses by role, and the first refusal stops the batch', async () => {
      const verdicts = await a().propose([
        { kind: 'renew', vm, epoch: 1 },
        { kind: 'create', vm: vmName('vm-2'), host: hostA, spec: spec({ name: vmName('vm-2') }) },
        { kind: 'renew', vm, epoch: 1 },
      ]);
      expect(verdicts).toHaveLength(2);
      expect(verdicts[0]).toMatchObject({ accepted: true, changed: false });
      expect(verdicts[1]).toMatchObject({ accepted: false, code: 'ownership/role' });
      expect(await as(identities[3]!).propose([joinHost(hostA)]))
        .toMatchObject([{ accepted: false, code: 'ownership/role' }]);
    });

    test('carries a whole move, and repeats do nothing', async () => {
      const seen: (VmEntry | null)[] = [];
      const stop = new AbortController();
      const watching = (async () => {
        for await (const entry of a().watchVm(vm, stop.signal)) {
          seen.push(entry);
          if (entry?.phase === 'owned' && entry.epoch === 2) break;
        }
      })();
      const move = { vm, migration: m, epoch: 1 };
      const steps: [ReturnType<typeof a>, LedgerEvent[]][] = [
        [as(control), [{
          kind: 'prepare', ...move, target: hostB, postCopyAllowed: false, commitDelegated: true,
        }]],
        [a(), [{
          kind: 'quiesced', ...move,
          record: record({ migration: m, epoch: 1 }, hostKey(hostA).privateKey),
        }]],
        [b(), [
          {
            kind: 'ready', ...move,
            record: record({ migration: m, epoch: 1 }, hostKey(hostB).privateKey),
          },
          { kind: 'commit', ...move },
          { kind: 'started', vm, epoch: 2, incarnation: vmm(2), imageStamp: 1 },
        ]],
        [as(control), [{ kind: 'settle', vm, migration: m, epoch: 2 }]],
      ];
      for (const [ledger, events] of steps) {
        const first = await ledger.propose(events);
        expect(first.map((one) => one.accepted && one.changed)).toEqual(events.map(() => true));
        // Only what still stands repeats as accepted; a late Ready or Commit of the batch does.
        const again = await ledger.propose(events);
        expect(again.map((one) => one.accepted && !one.changed)).toEqual(events.map(() => true));
      }
      await watching;
      expect(seen.at(-1)).toMatchObject({ phase: 'owned', epoch: 2, owner: hostB, diskHolder: hostB });
      expect(await a().migrationEnd(m)).toBe('committed');
      stop.abort();
    });

    test('a watch ends when its signal aborts', async () => {
      const stop = new AbortController();
      const seen: (VmEntry | null)[] = [];
      for await (const entry of b().watchVm(vm, stop.signal)) {
        seen.push(entry);
        stop.abort();
      }
      expect(seen).toHaveLength(1);
    });

    test('a rejected signature and a wrong epoch are refused', async () => {
      const m2 = moveId('r2');
      await must(as(control).propose([{
        kind: 'prepare', vm, migration: m2, epoch: 2, target: hostA, postCopyAllowed: false,
        commitDelegated: false,
      }]));
      const forged = record({ migration: m2, epoch: 2 }, hostKey(hostA).privateKey);
      expect(await b().propose([{ kind: 'quiesced', vm, migration: m2, epoch: 2, record: forged }]))
        .toMatchObject([{ accepted: false, code: 'ownership/refused' }]);
      expect(await as(control).propose([
        { kind: 'abort', vm, migration: m2, epoch: 1, reason: 'late' },
      ])).toMatchObject([{ accepted: false, code: 'ownership/refused' }]);
      await must(as(control).propose([
        { kind: 'abort', vm, migration: m2, epoch: 2, reason: 'enough' },
      ]));
      expect(await b().migrationEnd(m2)).toBe('aborted');
    });

    test('many proposals at once are all answered, in order', async () => {
      const answers = await Promise.all(Array.from({ length: 200 }, (_, index) =>
        as(control).propose([
          { kind: 'desire', vm, epoch: 2, desired: index % 2 === 0 ? 'stopped' : 'running' },
        ])));
      const indexes = answers.map(([one]) => (one?.accepted ? one.index : -1));
      expect(indexes).toEqual(indexes.toSorted((x, y) => x - y));
      expect(new Set(indexes).size).toBe(200);
    });

    test('delete keeps the epoch of the name', async () => {
      await must(as(control).propose([
        { kind: 'desire', vm, epoch: 2, desired: 'stopped' }, { kind: 'delete', vm, epoch: 2 },
      ]));
      expect(await a().readVm(vm)).toBeNull();
      expect(await a().listVms()).toEqual([]);
      await must(as(control).propose([{ kind: 'create', vm, host: hostB, spec: spec() }]));
      expect(await a().readVm(vm)).toMatchObject({ epoch: 3, owner: hostB });
    });
  });
}
