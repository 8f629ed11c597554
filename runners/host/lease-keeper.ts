/**
 * Keeps the leases of the VMs of this host that are bound to one (`failover: automatic`): asks the
 * ledger, then tells the guard and the NIC gate. Decides nothing about ownership; a lease that the
 * ledger does not renew ends by itself in the guard and in the kernel.
 */
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import type { Logger } from 'pino';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import type { VmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { Ledger } from '../../contracts/ownership.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { proposeUntilAnswered } from './move/ledger-steps.ts';

/** The guard answers from memory; longer means that it is gone, ms. */
const guardTimeoutMs = 1_000;
const answerBytesMax = 4_096;
const askAgainMs = 100;

/** Of the talk with guards, which may be older than this runner. */
const guardVersion = 1;
/** The fields of the guard's answer that matter here. */
const guardAnswer = z.looseObject({
  version: z.literal(guardVersion), ok: z.boolean(), leasePaused: z.boolean(),
  error: z.string().nullish(),
});

/** One command to a guard (native/guard), one answer. */
export type GuardCall = (
  socketPath: string, command: Readonly<Record<string, unknown>>,
) => Promise<Omit<z.infer<typeof guardAnswer>, 'version'>>;

export const callGuard: GuardCall = (socketPath, command) => new Promise((resolve, reject) => {
  const socket = connect(socketPath);
  let text = '';
  socket.setTimeout(guardTimeoutMs, () => socket.destroy(new Error('the guard does not answer')));
  socket.setEncoding('utf8');
  socket.on('data', (chunk: string) => {
    text += chunk;
    if (text.length > answerBytesMax) socket.destroy(new Error('the answer has no end'));
    if (!text.includes('\n')) return;
    socket.destroy();
    try {
      resolve(guardAnswer.parse(JSON.parse(text)));
    } catch (error) {
      reject(error as Error);
    }
  });
  socket.on('error', reject);
  socket.on('close', () => reject(new Error('the guard closed the connection')));
  socket.write(`${JSON.stringify({ version: guardVersion, ...command })}\n`);
});

/** Milliseconds since boot, time in suspend included: the clock of leases. 10 ms fine. */
export async function boottimeMs(): Promise<number> {
  const [seconds = '0'] = (await readFile('/proc/uptime', 'utf8')).split(' ');
  // Never later than it is: a lease counts from here.
  return Math.floor(Number(seconds) * 1000);
}

export interface LeaseKeeperOptions {
  readonly ledger: Ledger;
  readonly hypervisor: Pick<Hypervisor, 'living' | 'spec' | 'identity' | 'paths'>;
  /** Lets the VM's cards pass for so long from now, ms, unless they are shut on purpose. */
  readonly admitNics: (vm: VmName, leaseMs: number) => Promise<void>;
  readonly callGuard: GuardCall;
  readonly boottimeMs: () => Promise<number>;
  readonly sleep: (ms: number) => Promise<void>;
  readonly log: Logger;
}

/** A lease that the ledger gave, counted from when it was asked for. */
interface Grant {
  readonly ttlMs: number;
  readonly sentAtBoottimeMs: number;
}

export class LeaseKeeper {
  readonly #options: LeaseKeeperOptions;
  /** When the lease of a VM ends, on the clock of leases. */
  readonly #endsAtMs = new Map<VmName, number>();
  /** Renewals under way: a silent ledger must not pile them up, nor one VM hold up another. */
  readonly #renewing = new Set<VmName>();

  constructor(options: LeaseKeeperOptions) {
    this.#options = options;
  }

  /** Rest of the VM's lease as far as this process knows it, ms; 0 when it knows none. */
  async leftMs(vm: VmName): Promise<number> {
    const endsAtMs = this.#endsAtMs.get(vm);
    return endsAtMs === undefined
      ? 0 : Math.max(0, endsAtMs - await this.#options.boottimeMs());
  }

  /**
   * Binds a VM to its lease before it runs under `epoch`; see VmGates.bindLease. Also lets a VMM
   * go on that the end of an earlier lease has stopped: the renewal is the proof that it may.
   */
  async bind(vm: VmName, epoch: number): Promise<void> {
    if (!await this.#isBound(vm)) return;
    const { ledger, sleep } = this.#options;
    for (;;) {
      const sentAtBoottimeMs = await this.#options.boottimeMs();
      const verdict = await proposeUntilAnswered(
        { ledger, sleep }, [{ kind: 'renew', vm, epoch }]);
      if (!verdict.accepted) throw new CodedError('ownership/refused', verdict.reason);
      const ttlMs = verdict.leaseTtlMs ?? timing.leaseTtlMs;
      if (await this.#leaveToGuard(vm, { ttlMs, sentAtBoottimeMs })) return;
      // An answer that came after the end of what it grants is asked for again.
      await sleep(askAgainMs);
    }
  }

  /** Renews every lease once; called every timing.leaseRenewEveryMs. Failures are logged per VM. */
  async renewAll(): Promise<void> {
    const { hypervisor, log } = this.#options;
    await Promise.all((await hypervisor.living()).map(async (vm) => {
      if (this.#renewing.has(vm)) return;
      this.#renewing.add(vm);
      try {
        if (await this.#isBound(vm)) await this.#renew(vm);
      } catch (error) {
        log.warn({ vm, error: String(error) }, 'the lease could not be renewed');
      } finally {
        this.#renewing.delete(vm);
      }
    }));
  }

  async #isBound(vm: VmName): Promise<boolean> {
    return (await this.#options.hypervisor.spec(vm)).failover === 'automatic';
  }

  async #renew(vm: VmName): Promise<void> {
    const { ledger, hypervisor, log } = this.#options;
    // The token belongs to the running image: a newer epoch that this host learnt is not its own.
    const { imageStamp: epoch } = await hypervisor.identity(vm);
    if (epoch === null) return;
    const sentAtBoottimeMs = await this.#options.boottimeMs();
    const [verdict] = await ledger.propose([{ kind: 'renew', vm, epoch }]);
    if (verdict?.accepted !== true) {
      log.warn({ vm, epoch, reason: verdict?.reason }, 'the ledger does not renew the lease');
      return;
    }
    const ttlMs = verdict.leaseTtlMs ?? timing.leaseTtlMs;
    if (!await this.#leaveToGuard(vm, { ttlMs, sentAtBoottimeMs })) return;
    const leftMs = await this.leftMs(vm);
    if (leftMs > 0) await this.#options.admitNics(vm, leftMs);
  }

  /** Hands a grant to the guard; false when the guard does not take it, e.g. because it is over. */
  async #leaveToGuard(vm: VmName, grant: Grant): Promise<boolean> {
    const { hypervisor, log } = this.#options;
    const { guardSocket } = hypervisor.paths(vm);
    const call = async (command: Readonly<Record<string, unknown>>): ReturnType<GuardCall> => {
      try {
        return await this.#options.callGuard(guardSocket, command);
      } catch (error) {
        throw new CodedError('vmm/gone', `the guard of ${vm}: ${(error as Error).message}`, error);
      }
    };
    let answer = await call({ renew: grant });
    if (answer.leasePaused) {
      // Taken only if the ledger was asked after the pause began.
      answer = await call({ resume: grant });
      if (answer.ok) log.warn({ vm }, 'the VM goes on after a pause by its lease');
    }
    if (!answer.ok) {
      log.warn({ vm, reason: answer.error }, 'the guard does not take the lease');
      return false;
    }
    this.#endsAtMs.set(vm, grant.sentAtBoottimeMs + grant.ttlMs);
    return true;
  }
}
