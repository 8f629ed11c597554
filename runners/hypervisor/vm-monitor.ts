/**
 * What a move does to a running VMM: stop and resume its vCPUs, send and load device state. Decides
 * how each step is proved (by the VMM's own event, never by the command's return alone) and leaves
 * the order of the steps to the hand-over.
 */
import { CodedError } from '../../contracts/failures.ts';
import type { VmRunState } from '../../contracts/runner.ts';
import { QmpClient, QmpRefusal, type QmpEvent } from './qmp/client.ts';
import { migrateReply, statusReply } from './qmp/replies.ts';

/** Device state is 0.2-17 MB over a local socket: 2-20 ms; 10 s means that the VMM hangs. */
export const deviceStateTimeoutMs = 10_000;
/** vCPUs stand within a few ms, but `stop` also drains and flushes the disks before it answers. */
export const stopTimeoutMs = 10_000;
/**
 * The stream goes over local sockets: QEMU's default of 128 MiB/s would only lengthen the blackout.
 */
const deviceStateBytesPerSecond = 10_000_000_000;

/** When vCPUs stopped or started, by both clocks. */
export interface VcpuStamp {
  /** The VMM's wall clock, microseconds since 1970. */
  readonly vmmStampUs: number;
  /** This process's monotonic clock when the event was read, ms. */
  readonly receivedAtMs: number;
}

/**
 * A running VMM, seen by the hand-over. All methods fail with vmm/gone, vmm/timeout, vmm/protocol.
 */
export class VmMonitor {
  readonly qmp: QmpClient;

  constructor(qmp: QmpClient) {
    this.qmp = qmp;
  }

  /** Run state in the contract's words. */
  async runState(): Promise<VmRunState> {
    const { status } = await this.qmp.execute('query-status', { reply: statusReply });
    return runStateOf(status);
  }

  /**
   * Stops the vCPUs. Resolves after the command's answer too, i.e. with all block I/O of the guest
   * drained and flushed; the stamp is the STOP event's, when no vCPU ran any more. The drain waits
   * for writes that a mirror has on its way, and the VMM answers nothing meanwhile: `cutMirror`
   * ends the wait when the peer hangs; the mirror then fails and this goes on. A VM that is not
   * running fails with vm/not-running.
   */
  async stopVcpus(): Promise<VcpuStamp> {
    return this.#switchVcpus('stop', 'STOP');
  }

  /**
   * Starts the vCPUs (also from `postmigrate`, whose disks the VMM then takes back) and resolves
   * with the RESUME event. Failure: vm/start-failed when the VMM refuses.
   */
  async cont(): Promise<VcpuStamp> {
    try {
      return await this.#switchVcpus('cont', 'RESUME');
    } catch (error) {
      if (error instanceof QmpRefusal) throw new CodedError('vm/start-failed', error.detail, error);
      throw error;
    }
  }

  async #switchVcpus(command: 'stop' | 'cont', event: string): Promise<VcpuStamp> {
    const mark = this.qmp.eventCount;
    await this.qmp.execute(command, { timeoutMs: stopTimeoutMs });
    const [seen] = this.qmp.seenSince(event, mark);
    if (seen !== undefined) return stampOf(seen);
    // Events go out before the answer of the command that caused them; one more round trip proves
    // that there was none, i.e. that the VM was in that state already.
    await this.qmp.execute('query-status', { reply: statusReply });
    const [late] = this.qmp.seenSince(event, mark);
    if (late === undefined) throw new CodedError('vm/not-running', `${command} changed nothing`);
    return stampOf(late);
  }

  /**
   * Sets what both sides of a move need: guest RAM is not in the stream, events are sent, no rate
   * limit. Everything else is switched off, because capabilities persist between attempts.
   */
  async prepareMigration(): Promise<void> {
    const states: Readonly<Record<string, boolean>> = {
      'x-ignore-shared': true,
      events: true,
      'pause-before-switchover': false,
      'postcopy-ram': false,
      multifd: false,
      'auto-converge': false,
      'return-path': false,
    };
    await this.qmp.execute('migrate-set-capabilities', {
      arguments: {
        capabilities: Object.entries(states).map(([capability, state]) => ({ capability, state })),
      },
    });
    await this.qmp.execute('migrate-set-parameters', {
      arguments: { 'max-bandwidth': deviceStateBytesPerSecond },
    });
  }

  /** Target: listens for the device state at `socketPath`, made by the VMM, one connection. */
  async armIncoming(socketPath: string): Promise<void> {
    await this.qmp.execute('migrate-incoming', { arguments: { uri: `unix:${socketPath}` } });
  }

  /**
   * Target: resolves once the device state is loaded; the VM then stands paused. Call it before the
   * source sends. Failure: engine/failed.
   */
  async waitIncomingCompleted(timeoutMs: number = deviceStateTimeoutMs): Promise<QmpEvent> {
    const expected = this.#expectMigrationEnd(timeoutMs);
    try {
      const { status } = await this.qmp.execute('query-migrate', { reply: migrateReply });
      if (status === 'failed')
        throw new CodedError('engine/failed', 'the device state did not load');
      const seen =
        status === 'completed' ? this.qmp.seenSince('MIGRATION', 0).findLast(isEnd) : undefined;
      return checkedEnd(seen ?? (await expected.arrived));
    } finally {
      expected.cancel();
    }
  }

  /**
   * Source, stopped before: sends the device state to a listener of ours at `socketPath` and
   * resolves when the VMM calls it sent. The VM is then `postmigrate`: it stands, `cont` takes it
   * back. It must not have been sent before without a `cont` in between. Answers the bytes sent.
   * Failure: engine/failed; the VM then still stands.
   */
  async migrateDeviceState(
    socketPath: string,
    timeoutMs: number = deviceStateTimeoutMs,
  ): Promise<{ readonly bytesSent: number; readonly event: QmpEvent }> {
    const expected = this.#expectMigrationEnd(timeoutMs);
    try {
      await this.qmp.execute('migrate', { arguments: { uri: `unix:${socketPath}` } });
      const event = await expected.arrived;
      if (event.data['status'] !== 'completed') throw await this.#migrationFailure();
      const { ram } = await this.qmp.execute('query-migrate', { reply: migrateReply });
      return { bytesSent: ram?.transferred ?? 0, event };
    } catch (error) {
      if (error instanceof CodedError && error.code === 'vmm/timeout')
        await this.cancelDeviceState();
      throw error;
    } finally {
      expected.cancel();
    }
  }

  /** Source: gives up a device state that is on its way; nothing happens when none is. */
  async cancelDeviceState(): Promise<void> {
    await this.qmp.execute('migrate_cancel');
  }

  /** Target, after RESUME: tells the switches where the VM's addresses are now. */
  async announceSelf(): Promise<void> {
    await this.qmp.execute('announce-self', {
      arguments: { initial: 50, max: 550, rounds: 5, step: 100 },
    });
  }

  #expectMigrationEnd(timeoutMs: number): ReturnType<QmpClient['expectEvent']> {
    return this.qmp.expectEvent('MIGRATION', { timeoutMs, match: isEnd });
  }

  async #migrationFailure(): Promise<CodedError> {
    const reply = await this.qmp.execute('query-migrate', { reply: migrateReply });
    return new CodedError('engine/failed', reply['error-desc'] ?? `device state ${reply.status}`);
  }
}

const ends = ['completed', 'failed', 'cancelled'];
const isEnd = (event: QmpEvent): boolean => ends.includes(String(event.data['status']));

function checkedEnd(event: QmpEvent): QmpEvent {
  if (event.data['status'] === 'completed') return event;
  throw new CodedError('engine/failed', `device state ${String(event.data['status'])}`);
}

const stampOf = (event: QmpEvent): VcpuStamp => ({
  vmmStampUs: event.vmmStampUs,
  receivedAtMs: event.receivedAtMs,
});

/** QEMU's run states in the contract's words. */
export function runStateOf(status: string): VmRunState {
  switch (status) {
    case 'running':
      return 'running';
    case 'inmigrate':
      return 'incoming';
    case 'prelaunch':
    case 'paused':
    case 'postmigrate':
    case 'finish-migrate':
    case 'suspended':
    // Its disk had no room, or failed: the request is repeated when it goes on.
    case 'io-error':
      return 'paused';
    case 'shutdown':
      return 'stopped';
    default:
      return 'failed';
  }
}
