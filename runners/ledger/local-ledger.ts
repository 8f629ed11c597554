/**
 * The ledger without a server: the same core and, with a directory, the same log, in this process.
 * For tests and tools; a running `novacron` uses the server.
 */
import type { Logger } from 'pino';
import { pino } from 'pino';
import type { Identity } from '../../contracts/identity.ts';
import type { Ledger } from '../../contracts/ownership.ts';
import { lockDirectory } from '../group/ledger-log/directory-lock.ts';
import { directoryStorage } from '../group/ledger-log/log-storage.ts';
import type { LogStorage } from '../group/ledger-log/log-storage.ts';
import { memoryStorage } from '../group/ledger-log/memory-storage.ts';
import type { Moment } from '../group/ownership/state.ts';
import { EntryQueue } from '../../payloads/entry-queue.ts';
import { LedgerCore } from './core.ts';

/** A ledger that several identities share; `as` gives the view of one of them. */
export interface LocalLedger {
  as(identity: Identity): Ledger;
  readonly core: LedgerCore;
  close(): Promise<void>;
}

export interface LocalLedgerOptions {
  /** Directory of the log; null keeps everything in memory. */
  readonly dir: string | null;
  /** Instead of `dir`: a storage, e.g. a simulated disk. */
  readonly storage?: LogStorage;
  readonly logger?: Logger;
  readonly now?: () => Moment;
}

/** Opens (or makes) a ledger in this process. Throws as the server would at its start. */
export async function openLocalLedger(options: LocalLedgerOptions): Promise<LocalLedger> {
  const { dir } = options;
  const logger = options.logger ?? pino({ level: 'silent' });
  const storage = options.storage
    ?? (dir === null ? memoryStorage() : await directoryStorage(dir));
  const unlock = dir === null || options.storage ? async () => {} : await lockDirectory(dir);
  let core: LedgerCore;
  try {
    core = await LedgerCore.open({
      storage, logger, ...(options.now === undefined ? {} : { now: options.now }),
    });
  } catch (error) {
    await unlock();
    throw error;
  }
  const close = async (): Promise<void> => {
    await core.close();
    await unlock();
  };
  return { as: (identity) => ledgerAs(core, identity), core, close };
}

/** The `Ledger` that one identity sees; closing it ends its watches, not the ledger. */
function ledgerAs(core: LedgerCore, identity: Identity): Ledger {
  const queues = new Set<EntryQueue>();
  return {
    propose: (events) => core.propose(events, identity),
    readVm: async (vm) => core.readVm(vm),
    listVms: async () => core.listVms(),
    listHosts: async () => core.listHosts(),
    migrationEnd: async (migration) => core.migrationEnd(migration),
    watchVm: (vm, signal) => {
      let stop = (): void => {};
      const queue: EntryQueue = new EntryQueue(signal, () => {
        stop();
        queues.delete(queue);
      });
      if (queue.isEnded) return queue;
      queues.add(queue);
      stop = core.onVmChange(vm, (entry) => queue.push(entry));
      queue.push(core.readVm(vm));
      return queue;
    },
    close: async () => {
      for (const queue of queues) queue.end();
    },
  };
}
