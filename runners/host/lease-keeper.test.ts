import { pino } from 'pino';
import { expect, test } from 'vitest';
import { CodedError } from '../../contracts/failures.ts';
import { vmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { Ledger, LedgerEvent } from '../../contracts/ownership.ts';
import { LeaseKeeper, type LeaseKeeperOptions } from './lease-keeper.ts';

const vm = vmName('web');

function stage(change: {
  readonly failover?: 'none' | 'automatic';
  readonly accepted?: boolean;
  readonly leasePaused?: boolean;
  readonly leaseTtlMs?: number;
  /** Proposals that are not answered before the first answer comes. */
  readonly silentFor?: number;
  /** What passes on the clock of leases while a proposal is under way, ms. */
  readonly askingMs?: number;
} = {}) {
  const proposed: LedgerEvent[] = [];
  const told: Record<string, unknown>[] = [];
  const admitted: number[] = [];
  let nowMs = 5_000;
  let pausedAtMs = change.leasePaused === true ? 4_000 : null;
  let silences = change.silentFor ?? 0;
  const keeper = new LeaseKeeper({
    ledger: {
      propose: async (events: readonly LedgerEvent[]) => {
        proposed.push(...events);
        nowMs += change.askingMs ?? 0;
        await Promise.resolve();
        if (silences > 0) {
          silences -= 1;
          throw new CodedError('ownership/unreachable', 'silent by the test');
        }
        return [{
          accepted: change.accepted ?? true, reason: 'no',
          ...(change.leaseTtlMs === undefined ? {} : { leaseTtlMs: change.leaseTtlMs }),
        }];
      },
    } as unknown as Ledger,
    hypervisor: {
      living: async () => Promise.resolve([vm]),
      spec: async () => Promise.resolve({ failover: change.failover ?? 'automatic' }),
      identity: async () => Promise.resolve({ imageStamp: 7 }),
      paths: () => ({ guardSocket: '/guard.sock' }),
    } as unknown as LeaseKeeperOptions['hypervisor'],
    admitNics: async (_vm: unknown, leaseMs: number) => {
      admitted.push(leaseMs);
      return Promise.resolve();
    },
    // The rules of native/guard's lease.rs, as far as the keeper meets them.
    callGuard: async (_path, command) => {
      told.push(command);
      const { ttlMs, sentAtBoottimeMs } = (command['renew'] ?? command['resume']) as {
        ttlMs: number; sentAtBoottimeMs: number;
      };
      const isOver = sentAtBoottimeMs + ttlMs <= nowMs;
      const isResume = command['resume'] !== undefined;
      const ok = !isOver && (isResume
        ? pausedAtMs !== null && sentAtBoottimeMs >= pausedAtMs : pausedAtMs === null);
      if (ok) pausedAtMs = null;
      return Promise.resolve({ ok, leasePaused: pausedAtMs !== null, error: ok ? null : 'refused' });
    },
    boottimeMs: async () => Promise.resolve(nowMs),
    sleep: async (ms) => {
      nowMs += ms;
      return Promise.resolve();
    },
    log: pino({ level: 'silent' }),
  });
  return { keeper, proposed, told, admitted };
}

test('a renewed lease reaches guard and NIC gate, counted from when it was asked for', async () => {
  const { keeper, proposed, told, admitted } = stage({ askingMs: 300 });
  expect(await keeper.leftMs(vm)).toBe(0);
  await keeper.renewAll();
  expect(proposed).toEqual([{ kind: 'renew', vm, epoch: 7 }]);
  expect(told).toEqual([{ renew: { ttlMs: timing.leaseTtlMs, sentAtBoottimeMs: 5_000 } }]);
  expect(admitted).toEqual([timing.leaseTtlMs - 300]);
  expect(await keeper.leftMs(vm)).toBe(timing.leaseTtlMs - 300);
});

test('the ledger says how long a lease is', async () => {
  const { keeper, told } = stage({ leaseTtlMs: 3_000 });
  await keeper.renewAll();
  expect(told).toEqual([{ renew: { ttlMs: 3_000, sentAtBoottimeMs: 5_000 } }]);
});

test('a refused lease reaches nobody: it ends by itself', async () => {
  const { keeper, told, admitted } = stage({ accepted: false, leasePaused: true });
  await keeper.renewAll();
  expect([told, admitted]).toEqual([[], []]);
  await expect(keeper.bind(vm, 7)).rejects.toMatchObject({ code: 'ownership/refused' });
  expect(told).toEqual([]);
});

test('VMs without failover are never bound', async () => {
  const { keeper, proposed, told } = stage({ failover: 'none' });
  await keeper.renewAll();
  await keeper.bind(vm, 7);
  expect([proposed, told]).toEqual([[], []]);
});

test('after a lease pause an accepted renewal lets the VM go on', async () => {
  const { keeper, told, admitted } = stage({ leasePaused: true });
  await keeper.renewAll();
  expect(told.map((command) => Object.keys(command)[0])).toEqual(['renew', 'resume']);
  expect(admitted).toHaveLength(1);
});

test('an answer that comes after the lease it grants is over binds nothing', async () => {
  const { keeper, admitted } = stage({ askingMs: timing.leaseTtlMs });
  await keeper.renewAll();
  expect(admitted).toEqual([]);
  expect(await keeper.leftMs(vm)).toBe(0);
});

test('before a start the ledger is asked until it answers, and the lease is a fresh one', async () => {
  const { keeper, proposed, told } = stage({ silentFor: 2, askingMs: 5_000 });
  await keeper.bind(vm, 9);
  // Two silences made the first answer's lease too old; it was asked for again.
  expect(proposed).toEqual(Array.from({ length: 4 }, () => ({ kind: 'renew', vm, epoch: 9 })));
  expect(told).toHaveLength(2);
  expect(await keeper.leftMs(vm)).toBe(timing.leaseTtlMs - 5_000);
});
