/**
 * What a runner finds of a post-copy whose runner died: which half of it is this host's, and the
 * two small moves that carry it on. The guest runs at the target already; nothing is decided here
 * any more, pages are served until the target is whole (docs/ownership.md, host rule 6).
 */
import type { Logger } from 'pino';
import { plainReport } from '../../../contracts/exactness.ts';
import { CodedError } from '../../../contracts/failures.ts';
import type { HostName } from '../../../contracts/identity.ts';
import type { VmEntry } from '../../../contracts/ownership.ts';
import type { SourceSession, TargetSession } from '../../data-plane/sessions.ts';
import type { PeerConversation } from './ports.ts';
import type { TakeOver } from './target-move.ts';

/**
 * This host's half of a started post-copy that is not settled: the ledger knows what was missing
 * at the start, not what still is. Null when there is nothing of the kind.
 */
export function halfOfPostCopy(entry: VmEntry, host: HostName): 'source' | 'target' | null {
  const hasMissing = (entry.ready?.missingPageCount ?? 0) > 0;
  if (entry.phase !== 'unsettled' || !hasMissing) return null;
  if (entry.owner === host) return 'target';
  return entry.previous === host && entry.lastStarted === entry.epoch ? 'source' : null;
}

/**
 * Whether what is here of a VM may go when a migration to this host is over. Not when the VM has been
 * here since and moves on: the source of an unsettled move keeps its image, perhaps the only one.
 */
export function mayRemove(
  entry: Pick<VmEntry, 'owner' | 'phase' | 'previous'> | null, host: HostName,
): boolean {
  if (entry === null) return true;
  return entry.owner !== host && !(entry.phase === 'unsettled' && entry.previous === host);
}

/** The target's half after a restart: the VM runs, its missing pages come. */
export class ResumedTarget {
  readonly session: TargetSession;
  readonly outcome: Promise<TakeOver>;
  #stage: 'running' | 'ended' = 'running';

  constructor(options: {
    readonly session: TargetSession;
    readonly digest: string;
    readonly epoch: number;
    readonly log: Logger;
  }) {
    const { session, digest, epoch, log } = options;
    this.session = session;
    this.outcome = session.waitWhole().then(
      () => {
        log.info({ epoch }, 'every page is here');
        const detail = 'the runner of the target was replaced in post-copy';
        const exactness = plainReport('unverified', detail);
        return { kind: 'running', digest, epoch, exactness } as const;
      },
      (error: unknown) => {
        this.#stage = 'ended';
        log.warn({ error: String(error) }, 'the resumed post-copy ended');
        const coded = error instanceof CodedError ? error : null;
        const detail = coded?.detail ?? String(error);
        return { kind: 'gave-up', code: coded?.code ?? 'engine/failed', detail } as const;
      },
    );
  }

  get stage(): string {
    return this.#stage;
  }
  /** What was sent before this runner came is not known to it. */
  readonly isChecked = true;
  checkProgress(): null {
    return null;
  }
  /** The words of the hand-over are said; only lanes are needed now. */
  attach(link: PeerConversation): void {
    link.close();
  }
  /** The VM runs here: there is nothing to discard. */
  discard(): void {}
  close(): Promise<void> {
    return this.session.close();
  }
}

/** The source's half after a restart: a frozen image that is served. */
export class ResumedSource {
  readonly migration: string;
  readonly sinceMs: number;
  readonly #session: SourceSession;

  constructor(options: {
    readonly migration: string; readonly session: SourceSession; readonly nowMs: number;
    readonly log: Logger;
  }) {
    const { migration, session, nowMs, log } = options;
    this.migration = migration;
    this.sinceMs = nowMs;
    this.#session = session;
    session.connect().catch(() => undefined);
    session.servePostCopy().then(
      () => log.info('the target has every page'),
      (error: unknown) => log.warn({ error: String(error) }, 'serving the frozen image ended'),
    );
  }

  get hasFailed(): boolean {
    return this.#session.snapshot().failure !== null;
  }
  setBandwidth(bytesPerSecond: number): void {
    this.#session.setBandwidth(bytesPerSecond);
  }
  close(): Promise<void> {
    return this.#session.close();
  }
}
