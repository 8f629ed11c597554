/**
 * A guard and its VMM as they are, past the runner: what the guard answers, whether the kernel lets
 * the VMM run, and whether its card passes the host's NIC gate.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { hostName } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import { runCommand } from '../../lab/command.ts';
import { hostStateDirectory } from '../../lab/compose.ts';
import type { Lab } from '../../lab/lab.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { callGuard } from '../../runners/host/lease-keeper.ts';
import { readGuard } from '../../runners/hypervisor/guard-process.ts';
import type { GuardedVmm } from '../../runners/hypervisor/guard-process.ts';
import { tapName } from '../../runners/hypervisor/tap.ts';
import { vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import type { VmPaths } from '../../runners/hypervisor/vm-directory.ts';

const statusShape = z.looseObject({
  failover: z.enum(['none', 'automatic']), leasePaused: z.boolean(),
  leaseEndsAtBoottimeMs: z.number().nullable(), nowBoottimeMs: z.number(),
});
export type GuardStatus = z.infer<typeof statusShape>;

export class GuardView {
  readonly #lab: Lab;
  readonly #host: LabHost;
  readonly #vm: VmName;

  constructor(place: { readonly lab: Lab; readonly host: LabHost; readonly vm: VmName }) {
    this.#lab = place.lab;
    this.#host = place.host;
    this.#vm = place.vm;
  }

  get paths(): VmPaths {
    return vmPaths(join(hostStateDirectory(this.#lab, this.#host), 'vms'), this.#vm);
  }

  async status(): Promise<GuardStatus> {
    return statusShape.parse(await callGuard(this.paths.guardSocket, { status: {} }));
  }

  async processes(): Promise<GuardedVmm> {
    const guard = await readGuard(this.paths);
    if (guard === null) throw new Error(`${this.#vm} has no guard on ${this.#host.name}`);
    return guard;
  }

  /** Stopped by a signal, as the kernel has it. */
  async isStopped(): Promise<boolean> {
    const { vmmPid } = await this.processes();
    const stat = readFileSync(`/proc/${vmmPid}/stat`, 'latin1');
    return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T');
  }

  /** Whether frames of its first card pass the host's gate now. */
  async cardPasses(): Promise<boolean> {
    const senders = await runCommand([
      'ip', 'netns', 'exec', this.#host.namespace, 'nft', 'list', 'set', 'bridge', 'novacron',
      'senders']);
    const tap = tapName({ host: hostName(this.#host.name), vm: this.#vm, nic: 'n0' });
    return senders.includes(`"${tap}"`);
  }

  /** What a power failure does: guard and VMM are gone at once, nobody writes how they ended. */
  async cutPower(): Promise<void> {
    const { guardPid, vmmPid } = await this.processes();
    for (const pid of [guardPid, vmmPid]) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch (error) {
        // A guard with a lease takes its VMM with it.
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
      }
    }
  }
}
