/**
 * The memory engine of the addon behind the interface of sessions.ts. The only file that imports
 * native/generated: numbers pass the constructors of units.ts on their way in, errors become coded
 * ones on their way out.
 */
import { createRequire } from 'node:module';
import type * as Addon from '../../native/generated/index.js';
import { CodedError, isFailureCode } from '../../contracts/failures.ts';
import type { ImageComparison } from '../../contracts/exactness.ts';
import { limits } from '../../contracts/limits.ts';
import { bytes, bytesPerSecond, millis } from '../../contracts/units.ts';
import type {
  CheckedMemory, ConvergenceDecision, FinishedMemory, LaneListener, LaneTls, MemoryEngine,
  MemoryRecord,
  SourceOptions, SourceSession, SourceSnapshot, TargetOptions, TargetSession, TargetSnapshot,
} from './sessions.ts';

/** An NBD server answers within ms; a raise that waits longer is repeated by its caller. */
const drainTimeoutMs = 4_000;

/** Messages of the addon are `code: detail`. */
function toCoded(error: unknown): CodedError {
  const text = error instanceof Error ? error.message : String(error);
  const [code = '', ...rest] = text.split(': ');
  if (isFailureCode(code)) return new CodedError(code, rest.join(': '), error);
  return new CodedError('internal', text, error);
}

function guarded<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw toCoded(error);
  }
}

async function guardedPromise<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw toCoded(error);
  }
}

/** A number that a unit's constructor refuses is the caller's mistake. */
function checked(convert: () => number): number {
  try {
    return convert();
  } catch (error) {
    throw new CodedError('input/invalid', error instanceof Error ? error.message : String(error));
  }
}

const nativeTls = (tls: LaneTls): Addon.NativeTls => ({
  certPath: tls.certPath,
  keyPath: tls.keyPath,
  caPath: tls.caPath,
  revokedSerials: [...tls.revokedSerials],
});

class NativeSourceSession implements SourceSession {
  readonly #native: Addon.NativeSource;

  constructor(native: Addon.NativeSource) {
    this.#native = native;
  }

  connect(): Promise<void> {
    return guardedPromise(() => this.#native.connect());
  }

  startPreCopy(): void {
    guarded(() => this.#native.startPreCopy());
  }

  waitConverged(): Promise<ConvergenceDecision> {
    return guardedPromise(
      async () => (await this.#native.waitConverged()) as ConvergenceDecision);
  }

  finishMemory(options: { readonly mode: 'pre-copy' | 'post-copy' }): Promise<FinishedMemory> {
    return guardedPromise(() => this.#native.finishMemory(options.mode === 'post-copy'));
  }

  servePostCopy(): Promise<{ readonly digest: string }> {
    return guardedPromise(() => this.#native.servePostCopy());
  }

  checkImage(): Promise<ImageComparison> {
    return guardedPromise(() => this.#native.checkImage());
  }

  setBandwidth(value: number): void {
    guarded(() => this.#native.setBandwidth(checked(() => bytesPerSecond(value))));
  }

  setDowntimeBudget(value: number): void {
    guarded(() => this.#native.setDowntimeBudget(checked(() => millis(value))));
  }

  pause(): void {
    guarded(() => this.#native.setPaused(true));
  }

  resume(): void {
    guarded(() => this.#native.setPaused(false));
  }

  postCopyNow(): void {
    guarded(() => this.#native.postCopyNow());
  }

  raiseDisks(epoch: number): Promise<void> {
    return guardedPromise(() => this.#native.raiseDisks(epoch, drainTimeoutMs));
  }

  snapshot(): SourceSnapshot {
    return guarded(() => this.#native.snapshot() as SourceSnapshot);
  }

  abort(): Promise<void> {
    return guardedPromise(() => this.#native.abort());
  }

  close(): Promise<void> {
    return guardedPromise(() => this.#native.close());
  }
}

class NativeTargetSession implements TargetSession {
  readonly #native: Addon.NativeTarget;

  constructor(native: Addon.NativeTarget) {
    this.#native = native;
  }

  waitMemoryIn(): Promise<MemoryRecord> {
    return guardedPromise(() => this.#native.waitMemoryIn());
  }

  flushDisks(): Promise<void> {
    return guardedPromise(() => this.#native.flushDisks());
  }

  raiseDisks(epoch: number): Promise<void> {
    return guardedPromise(() => this.#native.raiseDisks(epoch, drainTimeoutMs));
  }

  waitWhole(): Promise<{ readonly digest: string }> {
    return guardedPromise(() => this.#native.waitWhole());
  }

  beginCheck(): void {
    guarded(() => this.#native.beginCheck());
  }

  waitChecked(): Promise<CheckedMemory> {
    return guardedPromise(() => this.#native.waitChecked());
  }

  repair(): ReturnType<TargetSession['repair']> {
    return guardedPromise(() => this.#native.repair());
  }

  endCheck(): Promise<void> {
    return guardedPromise(() => this.#native.endCheck());
  }

  snapshot(): TargetSnapshot {
    return guarded(() => this.#native.snapshot() as TargetSnapshot);
  }

  async close(): Promise<void> {
    guarded(() => this.#native.close());
  }
}

const nativeTargetOptions = (options: TargetOptions): Addon.NativeTargetOptions => ({
  migration: options.migration,
  epoch: options.epoch,
  sourceIdentity: options.sourceIdentity,
  memoryPath: options.memoryPath,
  memoryBytes: checked(() => bytes(options.memoryBytes)),
  vmmPid: options.vmmPid,
  deviceStateSocket: options.deviceStateSocket,
  disks: options.disks.map((disk) => ({ ...disk })),
  postCopyAllowed: options.postCopyAllowed,
  balloon: options.balloon,
  adopted: options.adopted,
  exactness: options.exactness,
  planted: options.planted,
});

class NativeLaneListener implements LaneListener {
  readonly #native: Addon.NativeListener;
  readonly #sessions = new Set<TargetSession>();

  constructor(native: Addon.NativeListener) {
    this.#native = native;
  }

  get port(): number {
    return this.#native.port;
  }

  expect(options: TargetOptions): TargetSession {
    return this.#hold(guarded(() => this.#native.expect(nativeTargetOptions(options))));
  }

  resume(options: TargetOptions): TargetSession {
    return this.#hold(guarded(() => this.#native.resume(nativeTargetOptions(options))));
  }

  #hold(native: Addon.NativeTarget): TargetSession {
    const session = new NativeTargetSession(native);
    this.#sessions.add(session);
    return session;
  }

  async close(): Promise<void> {
    guarded(() => this.#native.close());
    await Promise.all([...this.#sessions].map((session) => session.close()));
    this.#sessions.clear();
  }
}

function nativeSourceOptions(options: SourceOptions): Addon.NativeSourceOptions {
  if (!(options.laneCount >= 1 && options.laneCount <= limits.laneCountMax)) {
    throw new CodedError('input/invalid', `laneCount is 1 to ${limits.laneCountMax}`);
  }
  return {
    migration: options.migration,
    epoch: options.epoch,
    address: options.target.address,
    port: options.target.port,
    identity: options.target.identity,
    laneCount: options.laneCount,
    tls: nativeTls(options.tls),
    memoryPath: options.memoryPath,
    memoryBytes: checked(() => bytes(options.memoryBytes)),
    vmmPid: options.vmmPid,
    deviceStateSocket: options.deviceStateSocket,
    diskSockets: options.disks.map((disk) => disk.socket),
    socketUid: options.socketUid,
    bandwidthBytesPerSecond: checked(() => bytesPerSecond(options.bandwidthBytesPerSecond)),
    downtimeBudgetMs: checked(() => millis(options.downtimeBudgetMs)),
    postCopy: options.postCopy,
    balloon: options.balloon,
    deadlineMs: checked(() => millis(options.deadlineMs)),
    exactness: options.exactness,
    planted: options.planted,
  };
}

/**
 * Loads the addon. Failure: host/program-missing when it has not been built (`npm run native`) or
 * does not fit this machine.
 */
export function openMemoryEngine(): MemoryEngine {
  let addon: typeof Addon;
  try {
    addon = createRequire(import.meta.url)('../../native/generated/index.js') as typeof Addon;
  } catch (error) {
    throw new CodedError('host/program-missing', 'the addon: run `npm run native`', error);
  }
  return {
    openListener(options) {
      return new NativeLaneListener(guarded(() => addon.NativeListener.open({
        address: options.address,
        port: options.port,
        tls: nativeTls(options.tls),
      })));
    },
    openSource: (options) => new NativeSourceSession(
      guarded(() => addon.NativeSource.open(nativeSourceOptions(options)))),
    resumeSource: (options, record) => new NativeSourceSession(
      guarded(() => addon.NativeSource.resume(nativeSourceOptions(options), { ...record }))),
  };
}
