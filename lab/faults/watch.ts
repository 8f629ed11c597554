/**
 * Watches one VM from outside while it is hurt: which VMMs' vCPU threads use CPU time (/proc), and
 * from which host's port its frames come (the switch's own forwarding table, told by the kernel).
 * ARP requests to everybody, from the client's place, make each copy that may speak do so.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { VmName } from '../../contracts/identity.ts';
import { vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { runCommand } from '../command.ts';
import { hostStateDirectory } from '../compose.ts';
import type { Lab } from '../lab.ts';
import { vmBridge } from '../network/plan.ts';
import { commandIn, labVariable } from '../processes.ts';
import { startTicksOf } from '../state.ts';
import { seenAtOnce } from './verdict.ts';
import type { Sighting } from './verdict.ts';

const lookEveryMs = 50;
/** vCPUs that use less of a look do what the VMM asks of them while they stand, ns. */
const runningNsMin = 2_000_000;
/** Requests a second to everybody: one a process, so as many processes. */
const askerCount = 3;
/** A run ends long before; busybox wants a number. */
const askSecondsMax = 600;

/** CPU time of the vCPU threads of a process so far, ns; null when it is gone. */
export function vcpuNs(pid: number): number | null {
  try {
    return readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => {
      const name = readFileSync(`/proc/${pid}/task/${thread}/comm`, 'utf8');
      if (!/^CPU \d+\//.test(name)) return sum;
      const [used] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ');
      return sum + Number(used);
    }, 0);
  } catch {
    return null;
  }
}

/** Port from a line of the switch's forwarding table about `macAddress`; null for another. Pure. */
export function portOfLine(line: string, macAddress: string): string | null {
  const [mac, word, port] = line.trim().split(/\s+/);
  const isGone = line.startsWith('Deleted');
  return !isGone && mac === macAddress && word === 'dev' ? port ?? null : null;
}

export interface WatchedVm {
  readonly lab: Lab;
  readonly vm: VmName;
  readonly address: string;
  readonly macAddress: string;
}

/** One watch; it ends with `end`. */
export class Watch {
  readonly #of: WatchedVm;
  readonly #running: Sighting[] = [];
  readonly #speaking: Sighting[] = [];
  readonly #used = new Map<string, number>();
  readonly #children: ChildProcess[] = [];
  readonly #timer: NodeJS.Timeout;
  #look = 0;

  private constructor(of: WatchedVm) {
    this.#of = of;
    this.#timer = setInterval(() => this.#lookAtVmms(), lookEveryMs);
  }

  /** Begins with where the switch knows the VM to be. */
  static async begin(of: WatchedVm): Promise<Watch> {
    const watch = new Watch(of);
    watch.#follow();
    watch.#ask();
    const known = await runCommand(
      ['bridge', '-n', of.lab.plan.switchNamespace, 'fdb', 'show', 'br', vmBridge]);
    for (const line of known.split('\n')) {
      const port = portOfLine(line, of.macAddress);
      if (port !== null) watch.#speaking.unshift({ who: port, look: 0 });
    }
    return watch;
  }

  /** Largest numbers of copies that ran, and that were effective, at once. */
  end(): { readonly vcpuRunningMax: number; readonly effectiveMax: number } {
    clearInterval(this.#timer);
    for (const child of this.#children) child.kill('SIGKILL');
    return {
      vcpuRunningMax: seenAtOnce(this.#running), effectiveMax: seenAtOnce(this.#speaking),
    };
  }

  #lookAtVmms(): void {
    const { lab, vm } = this.#of;
    this.#look += 1;
    for (const host of lab.plan.hosts) {
      const { guardFile } = vmPaths(join(hostStateDirectory(lab, host), 'vms'), vm);
      const pid = vmmPidIn(guardFile);
      if (pid === null) continue;
      const who = `${host.name}/${pid}`;
      const used = vcpuNs(pid);
      const before = this.#used.get(who);
      if (used === null) continue;
      this.#used.set(who, used);
      if (before !== undefined && used - before >= runningNsMin) {
        this.#running.push({ who, look: this.#look });
      }
    }
  }

  #start(namespace: string, command: readonly string[]): ChildProcess {
    const [program = '', ...args] = commandIn(namespace, command);
    const child = spawn(program, args, {
      stdio: ['ignore', 'pipe', 'ignore'],
      env: { ...process.env, [labVariable]: this.#of.lab.id },
    });
    child.on('error', () => undefined);
    this.#children.push(child);
    return child;
  }

  /** The kernel tells each time that the address is learnt at another port. */
  #follow(): void {
    const { lab, macAddress } = this.#of;
    const child = this.#start(lab.plan.switchNamespace, ['bridge', 'monitor', 'fdb']);
    if (child.stdout === null) return;
    let change = 0;
    createInterface({ input: child.stdout }).on('line', (line) => {
      const port = portOfLine(line, macAddress);
      if (port === null) return;
      change += 1;
      this.#speaking.push({ who: port, look: change });
    });
  }

  #ask(): void {
    for (let asker = 0; asker < askerCount; asker += 1) {
      this.#start(this.#of.lab.plan.clientNamespace, [
        'busybox', 'arping', '-b', '-I', 'vm0', '-w', String(askSecondsMax), this.#of.address,
      ]).stdout?.resume();
    }
  }
}

/** The living VMM that a guard's file names; null without one. */
export function vmmPidIn(guardFile: string): number | null {
  try {
    const { vmmPid, vmmStartTime } = JSON.parse(readFileSync(guardFile, 'utf8')) as {
      vmmPid: number; vmmStartTime: number | string;
    };
    return startTicksOf(vmmPid) === Number(vmmStartTime) ? vmmPid : null;
  } catch {
    return null;
  }
}
