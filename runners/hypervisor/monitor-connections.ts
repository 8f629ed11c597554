/**
 * The runner's connections to the monitors of its VMMs. Decides that there is one per VM, kept while
 * it works: a VMM serves one client at a time, a second connection would wait for the first to end.
 */
import { CodedError } from '../../contracts/failures.ts';
import type { VmName } from '../../contracts/identity.ts';
import { isVmmAlive, launchTimeoutMs, startFailure, type GuardedVmm } from './guard-process.ts';
import { QmpClient } from './qmp/client.ts';
import type { VmPaths } from './vm-directory.ts';
import { VmMonitor } from './vm-monitor.ts';

/** A fresh VMM is asked so often whether its monitor listens, ms. */
const retryEveryMs = 10;

/** One connection per VM. */
export class MonitorConnections {
  readonly #kept = new Map<VmName, VmMonitor>();
  readonly #connecting = new Map<VmName, Promise<VmMonitor>>();
  readonly #onGone: (vm: VmName) => void;

  /** `onGone` is told of connections that were not ended here. */
  constructor(onGone: (vm: VmName) => void) {
    this.#onGone = onGone;
  }

  /**
   * The kept connection, or a new one to the socket that `locate` answers. Callers at the same time
   * get the same one. Failures: those of `locate`, vmm/gone, vmm/timeout, vmm/protocol.
   */
  async get(vm: VmName, locate: () => Promise<string>): Promise<VmMonitor> {
    const kept = this.#kept.get(vm);
    if (kept !== undefined && kept.qmp.failure === null) return kept;
    const connect = async (): Promise<VmMonitor> =>
      this.#keep(vm, await QmpClient.connect({ socketPath: await locate() }));
    const connecting = this.#connecting.get(vm) ?? connect();
    this.#connecting.set(vm, connecting);
    try {
      return await connecting;
    } finally {
      this.#connecting.delete(vm);
    }
  }

  /** Connects to a VMM that was started a moment ago. Failure: vm/start-failed with its log. */
  async awaitFresh(vm: VmName, paths: VmPaths, guard: GuardedVmm): Promise<VmMonitor> {
    const until = Date.now() + launchTimeoutMs;
    for (;;) {
      try {
        return this.#keep(vm, await QmpClient.connect({ socketPath: paths.qmpSocket }));
      } catch (error) {
        if (!(error instanceof CodedError && error.code === 'vmm/gone')) throw error;
        if (!(await isVmmAlive(guard))) throw await startFailure(paths, 'the VMM ended');
        if (Date.now() > until) throw error;
      }
      await new Promise((resolve) => {
        setTimeout(resolve, retryEveryMs);
      });
    }
  }

  #keep(vm: VmName, qmp: QmpClient): VmMonitor {
    const monitor = new VmMonitor(qmp);
    this.#kept.set(vm, monitor);
    void qmp.gone.then(() => {
      if (this.#kept.get(vm) !== monitor) return;
      this.#kept.delete(vm);
      this.#onGone(vm);
    });
    return monitor;
  }

  /** Ends the connection to one VM; its VMM goes on. */
  forget(vm: VmName): void {
    this.#kept.get(vm)?.qmp.close();
    this.#kept.delete(vm);
  }

  /** Ends all connections. */
  close(): void {
    for (const vm of this.#kept.keys()) this.forget(vm);
  }
}
