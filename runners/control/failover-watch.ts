/**
 * Looks for VMs whose host has gone silent and starts `failoverVm` for those that another host can
 * start. Decides nothing: the ledger gives a VM away when its lease has run out, and not before; a
 * host that was only slow keeps what it has.
 */
import type { Client } from '@temporalio/client';
import type { Logger } from 'pino';
import { failoverRequest, type VmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { HostView, Ledger, VmEntry } from '../../contracts/ownership.ts';
import { outlivesItsHost } from '../../contracts/runner.ts';
import { startLifecycle } from '../../payloads/lifecycle-client.ts';

/** VMs that may have to be started elsewhere: bound to a lease, wanted, startable. Pure. */
export function abandonedVms(
  hosts: readonly HostView[], entries: readonly VmEntry[],
): readonly VmEntry[] {
  const silent = new Set(hosts
    .filter(({ silentForMs }) => silentForMs > timing.failoverSilentMsMin)
    .map(({ facts }) => facts.name));
  return entries.filter(({ owner, phase, desired, spec }) =>
    owner !== null && silent.has(owner) && phase !== 'absent' && desired === 'running'
    && spec.failover === 'automatic' && outlivesItsHost(spec));
}

/** Looks every timing.failoverLookEveryMs until it is closed. */
export function watchForFailover(
  { ledger, client, log }: {
    readonly ledger: Ledger; readonly client: Client; readonly log: Logger;
  },
): { readonly close: () => void } {
  let isLooking = false;
  /** Epoch of each VM that was told. */
  const told = new Map<VmName, number>();
  const look = async (): Promise<void> => {
    const hosts = await ledger.listHosts();
    if (!hosts.some(({ silentForMs }) => silentForMs > timing.failoverSilentMsMin)) return;
    for (const { vm, epoch, owner } of abandonedVms(hosts, await ledger.listVms())) {
      if (told.get(vm) !== epoch) {
        log.warn({ vm, epoch, owner }, 'its host is silent: a failover is asked for');
        told.set(vm, epoch);
      }
      // The same VM and epoch join the one that is under way, whoever started it.
      await startLifecycle(client, {
        step: 'failover',
        input: {
          version: 1, vm, epoch, request: failoverRequest(epoch), to: null, fenceProof: null,
        },
      });
    }
  };
  const timer = setInterval(() => {
    if (isLooking) return;
    isLooking = true;
    look().catch((error: unknown) => {
      log.debug({ error: String(error) }, 'silent hosts are looked for again');
    }).finally(() => { isLooking = false; });
  }, timing.failoverLookEveryMs);
  return { close: () => clearInterval(timer) };
}
