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
import type { LifecycleOutcome } from '../../contracts/vm-lifecycle.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';

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

/** After a failover that did not come about, ms: doubled each time, up to the second figure. */
const askAgainMs = { first: 1_000, max: 30_000 } as const;

/** What has been asked for: one run at a time for a VM and epoch, ever more seldom if they fail. */
export class Askings {
  readonly #asked = new Map<VmName, {
    readonly epoch: number; readonly endedCount: number;
    /** Infinite while the run is open. */
    readonly againAtMs: number;
  }>();

  /** Whether it is to be asked for now, and then for the first time under this epoch. */
  begin({ vm, epoch }: Pick<VmEntry, 'vm' | 'epoch'>, nowMs: number): 'first' | 'again' | 'wait' {
    const known = this.#asked.get(vm);
    const isKnown = known?.epoch === epoch;
    if (isKnown && nowMs < known.againAtMs) return 'wait';
    const endedCount = isKnown ? known.endedCount : 0;
    this.#asked.set(vm, { epoch, endedCount, againAtMs: Infinity });
    return isKnown ? 'again' : 'first';
  }

  /** Its run has ended, however; if the VM is still where it was, that was a failure. */
  ended({ vm, epoch }: Pick<VmEntry, 'vm' | 'epoch'>, nowMs: number): void {
    const known = this.#asked.get(vm);
    if (known?.epoch !== epoch) return;
    const waitMs = Math.min(askAgainMs.max, askAgainMs.first * 2 ** known.endedCount);
    this.#asked.set(vm, { epoch, endedCount: known.endedCount + 1, againAtMs: nowMs + waitMs });
  }
}

/** Runs `failoverVm` for the VM and epoch, or joins the run that is under way, to its end. */
export const failoverBy = (client: Client) =>
  async ({ vm, epoch }: VmEntry): Promise<LifecycleOutcome> => (await runLifecycle(client, {
    step: 'failover',
    input: { version: 1, vm, epoch, request: failoverRequest(epoch), to: null, fenceProof: null },
  })).outcome;

/** Looks every timing.failoverLookEveryMs until it is closed. */
export function watchForFailover(
  { ledger, failover, log }: {
    readonly ledger: Pick<Ledger, 'listHosts' | 'listVms'>;
    readonly failover: (entry: VmEntry) => Promise<LifecycleOutcome>;
    readonly log: Logger;
  },
): { readonly close: () => void } {
  let isLooking = false;
  const askings = new Askings();
  const ask = (entry: VmEntry): void => {
    const { vm, epoch, owner } = entry;
    const step = askings.begin(entry, Date.now());
    if (step === 'wait') return;
    if (step === 'first') {
      log.warn({ vm, epoch, owner }, 'its host is silent: a failover is asked for');
    }
    failover(entry).then(
      ({ kind }) => log.info({ vm, epoch, kind }, 'a failover has ended'),
      (error: unknown) => log.warn({ vm, epoch, error: String(error) }, 'a failover is unknown'),
    ).finally(() => askings.ended(entry, Date.now()));
  };
  const look = async (): Promise<void> => {
    const hosts = await ledger.listHosts();
    if (!hosts.some(({ silentForMs }) => silentForMs > timing.failoverSilentMsMin)) return;
    for (const entry of abandonedVms(hosts, await ledger.listVms())) ask(entry);
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
