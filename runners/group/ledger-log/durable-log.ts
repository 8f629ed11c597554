/**
 * The ledger's durable log: loads checkpoint and segments, appends lines with one sync for all of
 * them, cuts a torn tail, refuses damage, and compacts. What the lines mean is ../ownership's.
 */
import type { Logger } from 'pino';
import { CodedError } from '../../../contracts/failures.ts';
import type { LogLine, StoredState } from '../ownership/state.ts';
import { LedgerState } from '../ownership/state.ts';
import {
  decodeCheckpoint, encodeCheckpoint, encodeHeader, encodeLines, headerBytes, scanSegment,
} from './log-format.ts';
import type { AppendFile, LogStorage } from './log-storage.ts';

/** A new segment and checkpoint after this much: a start reads and checks it in about 0.2 s. */
export const segmentBytesMax = 16 * 1024 * 1024;

const segmentName = (firstIndex: number): string =>
  `segment-${String(firstIndex).padStart(16, '0')}.log`;
export const checkpointName = (index: number): string =>
  `checkpoint-${String(index).padStart(16, '0')}.state`;
const segmentPattern = /^segment-\d{16}\.log$/;
const checkpointPattern = /^checkpoint-\d{16}\.state$/;

interface SegmentTail {
  readonly name: string;
  readonly validBytes: number;
  readonly tornBytes: number;
}

/** What is on disk. */
export interface LoadedLog {
  readonly state: LedgerState;
  /** Newest segment and how many of its bytes are valid; null when there is none. */
  readonly tail: SegmentTail | null;
  readonly checkpoint: string | null;
  readonly segments: readonly string[];
  readonly lineCount: number;
}

const damaged = (name: string, problem: string): CodedError => new CodedError(
  'internal',
  `the ledger's file ${name} is damaged: ${problem}. It will not start, because going on could`
  + ' forget an owner. Keep the directory, check the disk, then restore the newest backup into an'
  + ' empty directory (`restore`) or bring the file back from a copy',
);

/**
 * Reads a log without changing it. Throws when something durable is damaged or missing; a torn tail
 * (never acknowledged) is not damage. `eachLine` sees every line after the checkpoint, with the
 * state before it.
 */
export async function loadLog(
  storage: LogStorage, leaseFloorMs: number,
  eachLine: (line: LogLine, before: LedgerState) => void = () => {},
): Promise<LoadedLog> {
  const names = [...await storage.list()].sort();
  const segments = names.filter((name) => segmentPattern.test(name));
  const checkpoint = names.filter((name) => checkpointPattern.test(name)).at(-1) ?? null;
  let state = new LedgerState(leaseFloorMs);
  if (checkpoint !== null) {
    const stored = decodeCheckpoint(await storage.read(checkpoint));
    if ('problem' in stored) throw damaged(checkpoint, stored.problem);
    state = LedgerState.restore(stored, leaseFloorMs);
  }
  let tail: LoadedLog['tail'] = null;
  let lineCount = 0;
  for (const [position, name] of segments.entries()) {
    const bytes = await storage.read(name);
    const { lines, validBytes, problem } = scanSegment(bytes);
    if (problem !== null) throw damaged(name, problem);
    const tornBytes = bytes.length - validBytes;
    if (tornBytes > 0 && position < segments.length - 1) {
      throw damaged(name, `${tornBytes} bytes at its end, and a newer segment exists`);
    }
    for (const line of lines) {
      if (line.index <= state.index) continue;
      if (line.index !== state.index + 1) {
        throw damaged(name, `line ${line.index} follows line ${state.index}`);
      }
      eachLine(line, state);
      state.apply(line.change);
      lineCount += 1;
    }
    tail = { name, validBytes, tornBytes };
  }
  return { state, tail, checkpoint, segments, lineCount };
}

/** Compaction may remove a file while it is read; then the files are listed anew, this often. */
const liveAttemptsMax = 10;

/** `loadLog` for a directory whose ledger may be running: what it read is a prefix of the log. */
export async function loadLiveLog(
  storage: LogStorage, eachLine?: (line: LogLine, before: LedgerState) => void,
): Promise<LoadedLog> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await loadLog(storage, 0, eachLine);
    } catch (error) {
      const gone = (error as NodeJS.ErrnoException).code === 'ENOENT';
      if (!gone || attempt === liveAttemptsMax) throw error;
    }
  }
}

const fullCodes: readonly string[] = ['ENOSPC', 'EDQUOT', 'EFBIG'];
const isDiskFull = (error: unknown): boolean =>
  error instanceof Error && fullCodes.includes((error as NodeJS.ErrnoException).code ?? '');

export interface DurableLogOptions {
  readonly storage: LogStorage;
  readonly logger: Logger;
  readonly leaseFloorMs: number;
  readonly segmentBytesMax?: number;
}

/** The open log. One writer; `append` and `checkpoint` are not called at the same time. */
export class DurableLog {
  readonly state: LedgerState;
  private readonly storage: LogStorage;
  private readonly logger: Logger;
  private readonly segmentLimit: number;
  private file: AppendFile;
  private name: string;
  private sizeBytes: number;
  /** Set when it is not known what is durable; nothing may be answered any more. */
  private broken: Error | null = null;

  private constructor(
    options: DurableLogOptions, state: LedgerState, file: AppendFile,
    tail: { readonly name: string; readonly validBytes: number },
  ) {
    this.state = state;
    this.storage = options.storage;
    this.logger = options.logger;
    this.segmentLimit = options.segmentBytesMax ?? segmentBytesMax;
    this.file = file;
    this.name = tail.name;
    this.sizeBytes = tail.validBytes;
  }

  /** Loads and makes ready for appending: cuts a torn tail, makes the first segment. */
  static async open(options: DurableLogOptions): Promise<DurableLog> {
    const { storage, logger, leaseFloorMs } = options;
    for (const name of await storage.list()) {
      if (name.endsWith('.tmp')) await storage.remove(name);
    }
    const loaded = await loadLog(storage, leaseFloorMs);
    let { tail } = loaded;
    if (tail === null) {
      const name = segmentName(loaded.state.index + 1);
      await storage.writeWhole(name, encodeHeader('segment', loaded.state.index + 1));
      tail = { name, validBytes: headerBytes, tornBytes: 0 };
    }
    const file = await storage.openAppend(tail.name);
    if (tail.tornBytes > 0) {
      logger.warn(
        { segment: tail.name, keptBytes: tail.validBytes, droppedBytes: tail.tornBytes },
        'the end of the ledger log was torn by a crash and is cut; nothing acknowledged is lost',
      );
      await file.truncate(tail.validBytes);
    }
    const log = new DurableLog(options, loaded.state, file, tail);
    if (log.sizeBytes > log.segmentLimit) await log.checkpoint();
    return log;
  }

  get segmentSizeBytes(): number {
    return this.sizeBytes;
  }

  /**
   * Makes the lines durable, all or none, with one sync. Throws `disk/full` when there is no room:
   * then none of them will ever be read back. Any other failure breaks the log for good, because
   * the kernel does not say what a failed sync has kept.
   */
  async append(lines: readonly LogLine[]): Promise<void> {
    if (this.broken !== null) throw this.brokenError();
    const bytes = encodeLines(lines);
    try {
      await this.file.append(bytes);
      await this.file.sync();
    } catch (error) {
      await this.takeBack(error);
    }
    this.sizeBytes += bytes.length;
  }

  private async takeBack(error: unknown): Promise<never> {
    if (isDiskFull(error)) {
      try {
        await this.file.truncate(this.sizeBytes);
      } catch (second) {
        this.broken = second as Error;
        throw this.brokenError();
      }
      throw new CodedError('disk/full', 'the ledger has no room for its log', error);
    }
    this.broken = error as Error;
    throw this.brokenError();
  }

  private brokenError(): CodedError {
    return new CodedError(
      'ownership/unreachable', `the ledger's disk failed: ${this.broken?.message}`, this.broken,
    );
  }

  get isBroken(): boolean {
    return this.broken !== null;
  }

  get wantsCheckpoint(): boolean {
    return this.sizeBytes > this.segmentLimit;
  }

  /**
   * Stores the whole state, begins a new segment, and removes what both make needless. A crash in
   * between leaves a log that loads to the same state; without room the old segment goes on.
   */
  async checkpoint(): Promise<void> {
    const stored: StoredState = this.state.store();
    const checkpoint = checkpointName(stored.index);
    const segment = segmentName(stored.index + 1);
    try {
      await this.storage.writeWhole(checkpoint, encodeCheckpoint(stored));
      if (segment !== this.name) {
        await this.storage.writeWhole(segment, encodeHeader('segment', stored.index + 1));
      }
    } catch (error) {
      this.logger.error({ err: error }, 'no checkpoint of the ledger; its log goes on growing');
      return;
    }
    if (segment !== this.name) {
      await this.file.close();
      this.file = await this.storage.openAppend(segment);
      this.name = segment;
      this.sizeBytes = headerBytes;
    }
    for (const name of await this.storage.list()) {
      const old = (segmentPattern.test(name) && name < segment)
        || (checkpointPattern.test(name) && name < checkpoint);
      if (old) await this.storage.remove(name);
    }
    this.logger.info({ index: stored.index, segment }, 'ledger checkpoint');
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}
