/**
 * Keeps the leases of the VMs of this host that are bound to one (`failover: automatic`): asks the
 * ledger, then tells the guard and the NIC gate. Decides nothing about ownership; a lease that the
 * ledger does not renew ends by itself in the guard and in the kernel.
 */
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { HostName, VmName } from '../../contracts/identity.ts';
import { timing } from '../../contracts/limits.ts';
import type { Ledger } from '../../contracts/ownership.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';

/** The guard answers from memory; longer means that it is gone, ms. */
const guardTimeoutMs = 1_000;
const answerBytesMax = 4_096;

/** The fields of the guard's answer that matter here. */
const guardAnswer = z.looseObject({ ok: z.boolean(), leasePaused: z.boolean() });

/** One command to a guard (native/guard), one answer. */
export type GuardCall = (
  socketPath: string, command: Readonly<Record<string, unknown>>,
) => Promise<z.infer<typeof guardAnswer>>;

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
  socket.write(`${JSON.stringify(command)}\n`);
});

/** Milliseconds since boot, time in suspend included: the clock of leases. 10 ms fine. */
export async function boottimeMs(): Promise<number> {
  const [seconds = '0'] = (await readFile('/proc/uptime', 'utf8')).split(' ');
  return Math.round(Number(seconds) * 1000);
}

export interface LeaseKeeperOptions {
  readonly host: HostName;
  readonly ledger: Ledger;
  readonly hypervisor: Pick<Hypervisor, 'list' | 'spec' | 'identity' | 'paths'>;
  /** Lets the VM's cards pass for so long from now, ms. */
  readonly admitNics: (vm: VmName, leaseMs: number) => Promise<void>;
  readonly callGuard: GuardCall;
  readonly boottimeMs: () => Promise<number>;
  readonly log: Logger;
}

/** Renews every lease once; called every timing.leaseRenewEveryMs. Failures are logged per VM. */
export async function renewLeases(options: LeaseKeeperOptions): Promise<void> {
  const { hypervisor, log } = options;
  for (const { vm, vmmPid } of await hypervisor.list()) {
    if (vmmPid === null || (await hypervisor.spec(vm)).failover !== 'automatic') continue;
    try {
      await renewOne(options, vm);
    } catch (error) {
      log.warn({ vm, error: String(error) }, 'the lease could not be renewed');
    }
  }
}

async function renewOne(options: LeaseKeeperOptions, vm: VmName): Promise<void> {
  const { ledger, hypervisor, host, log } = options;
  // The token belongs to the running image: a newer epoch that this host learnt is not its own.
  const { imageStamp: epoch } = await hypervisor.identity(vm);
  if (epoch === null) return;
  const sentAtBoottimeMs = await options.boottimeMs();
  const [verdict] = await ledger.propose([{ kind: 'renew', vm, epoch }]);
  if (verdict?.accepted !== true) {
    log.warn({ vm, epoch, reason: verdict?.reason }, 'the ledger does not renew the lease');
    return;
  }
  const grant = { ttlMs: timing.leaseTtlMs, sentAtBoottimeMs };
  const { guardSocket } = hypervisor.paths(vm);
  const answer = await options.callGuard(guardSocket, { renew: grant });
  if (answer.leasePaused) {
    const entry = await ledger.readVm(vm);
    if (entry?.owner !== host || entry.epoch !== epoch) return;
    await options.callGuard(guardSocket, { resume: grant });
    log.warn({ vm, epoch }, 'the VM goes on after a pause by its lease');
  }
  const leftMs = timing.leaseTtlMs - (await options.boottimeMs() - sentAtBoottimeMs);
  if (leftMs > 0) await options.admitNics(vm, leftMs);
}
