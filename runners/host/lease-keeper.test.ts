import { pino } from 'pino';
import { expect, test } from 'vitest';
import { hostName, incarnation, vmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { Ledger, LedgerEvent } from '../../contracts/ownership.ts';
import { renewLeases, type LeaseKeeperOptions } from './lease-keeper.ts';

const vm = vmName('web');

function stage(change: {
  readonly failover?: 'none' | 'automatic';
  readonly accepted?: boolean;
  readonly leasePaused?: boolean;
  readonly owner?: string;
} = {}) {
  const proposed: LedgerEvent[] = [];
  const told: unknown[] = [];
  const admitted: number[] = [];
  const options = {
    host: hostName('h1'),
    ledger: {
      propose: async (events: readonly LedgerEvent[]) => {
        proposed.push(...events);
        return Promise.resolve([{ accepted: change.accepted ?? true, reason: 'no' }]);
      },
      readVm: async () => Promise.resolve({ owner: change.owner ?? 'h1', epoch: 7 }),
    } as unknown as Ledger,
    hypervisor: {
      list: async () => Promise.resolve([
        { vm, runState: 'running', incarnation: incarnation('0'.repeat(32)), vmmPid: 9 },
      ]),
      spec: async () => Promise.resolve({ failover: change.failover ?? 'automatic' }),
      identity: async () => Promise.resolve({ imageStamp: 7 }),
      paths: () => ({ guardSocket: '/guard.sock' }),
    } as unknown as LeaseKeeperOptions['hypervisor'],
    admitNics: async (_vm: unknown, leaseMs: number) => {
      admitted.push(leaseMs);
      return Promise.resolve();
    },
    callGuard: async (_path: string, command: Readonly<Record<string, unknown>>) => {
      told.push(command);
      return Promise.resolve({ ok: true, leasePaused: change.leasePaused ?? false });
    },
    boottimeMs: async () => Promise.resolve(5_000),
    log: pino({ level: 'silent' }),
  };
  return { options, proposed, told, admitted };
}

test('a renewed lease reaches guard and NIC gate, counted from when it was asked for', async () => {
  const { options, proposed, told, admitted } = stage();
  await renewLeases(options);
  expect(proposed).toEqual([{ kind: 'renew', vm, epoch: 7 }]);
  expect(told).toEqual([{ renew: { ttlMs: timing.leaseTtlMs, sentAtBoottimeMs: 5_000 } }]);
  expect(admitted).toEqual([timing.leaseTtlMs]);
});

test('a refused lease reaches nobody: it ends by itself', async () => {
  const { options, told, admitted } = stage({ accepted: false });
  await renewLeases(options);
  expect([told, admitted]).toEqual([[], []]);
});

test('VMs without failover are never bound', async () => {
  const { options, proposed } = stage({ failover: 'none' });
  await renewLeases(options);
  expect(proposed).toEqual([]);
});

test('after a lease pause only an owner at its epoch goes on', async () => {
  const owner = stage({ leasePaused: true });
  await renewLeases(owner.options);
  expect(owner.told).toContainEqual(expect.objectContaining({ resume: expect.anything() as unknown }));
  const other = stage({ leasePaused: true, owner: 'h2' });
  await renewLeases(other.options);
  expect(other.told).toHaveLength(1);
  expect(other.admitted).toEqual([]);
});
