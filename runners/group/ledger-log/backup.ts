/**
 * Backup and restore of the ledger. A backup is one checkpoint with a manifest; it is made from the
 * files alone, so it works while the ledger runs and holds everything acknowledged before it began.
 *
 * Restoring is the one operation that can break the promise of one owner: what the ledger decided
 * after the backup is forgotten. So a restore says which it is: `complete` (nothing was decided
 * since, e.g. the ledger was stopped before) keeps every entry; `rolled-back` raises every epoch
 * beyond what any gate can hold, forbids every memory image, and leaves all VMs to be stopped until
 * an operator has looked where they run.
 */
import { createHash } from 'node:crypto';
import { mkdir, readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../../../contracts/failures.ts';
import { endMove } from '../ownership/decision.ts';
import type { StoredState, VmRecord } from '../ownership/state.ts';
import { checkpointName, loadLiveLog } from './durable-log.ts';
import { decodeCheckpoint, encodeCheckpoint } from './log-format.ts';
import { directoryStorage } from './log-storage.ts';

/** More epochs than a VM can have used since any backup: one a second for eleven days. */
export const rolledBackEpochStep = 1_000_000;
const manifestName = 'manifest.json';

const manifest = z.strictObject({
  version: z.literal(1), index: z.int().min(0), file: z.string(), sha256: z.string(),
  takenAtMs: z.number(),
});
export type BackupManifest = z.infer<typeof manifest>;
export type RestoreKind = 'complete' | 'rolled-back';

async function assertEmpty(dir: string): Promise<void> {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const names = await readdir(dir);
  if (names.length > 0) {
    throw new CodedError('input/invalid', `${dir} is not empty; name an empty or new directory`);
  }
}

/** Copies the ledger in `stateDir` into the empty directory `to`; the ledger may go on running. */
export async function backupLedger({ stateDir, to, nowMs }: {
  readonly stateDir: string; readonly to: string; readonly nowMs: number;
}): Promise<BackupManifest> {
  // Listing first: a mistyped state directory must not be made by the backup.
  await readdir(stateDir).catch((error: unknown) => {
    throw new CodedError('input/invalid', `${stateDir} can't be read`, error);
  });
  await assertEmpty(to);
  const { state: loaded } = await loadLiveLog(await directoryStorage(stateDir));
  const state = loaded.store();
  const bytes = encodeCheckpoint(state);
  const target = await directoryStorage(to);
  const made: BackupManifest = {
    version: 1, index: state.index, file: checkpointName(state.index),
    sha256: createHash('sha256').update(bytes).digest('hex'), takenAtMs: nowMs,
  };
  await target.writeWhole(made.file, bytes);
  await target.writeWhole(manifestName, Buffer.from(`${JSON.stringify(made)}\n`));
  return made;
}

/** Makes a state directory from a backup; refuses one that is not empty. */
export async function restoreLedger({ from, stateDir, kind, nowMs }: {
  readonly from: string; readonly stateDir: string; readonly kind: RestoreKind;
  readonly nowMs: number;
}): Promise<BackupManifest> {
  const parsed = manifest.safeParse(JSON.parse(
    await readFile(join(from, manifestName), 'utf8').catch(() => 'null')));
  if (!parsed.success) throw new CodedError('input/invalid', `${from} holds no backup`);
  const bytes = await readFile(join(from, parsed.data.file));
  if (createHash('sha256').update(bytes).digest('hex') !== parsed.data.sha256) {
    throw new CodedError('input/invalid', `${from}: the backup is damaged (its digest differs)`);
  }
  const stored = decodeCheckpoint(bytes);
  if ('problem' in stored) throw new CodedError('input/invalid', `${from}: ${stored.problem}`);
  await assertEmpty(stateDir);
  const state = kind === 'complete' ? stored : rollBack(stored, nowMs);
  const target = await directoryStorage(stateDir);
  await target.writeWhole(checkpointName(state.index), encodeCheckpoint(state));
  return parsed.data;
}

/** A state that is safe although decisions after it are lost; see the head of this file. */
export function rollBack(stored: StoredState, nowMs: number): StoredState {
  const ended = [...stored.ended];
  const vms = stored.vms.map((record): VmRecord => {
    const { entry, move } = record;
    const closed = move !== null && move.end === null
      ? endMove(move, entry.phase === 'preparing' ? 'aborted'
        : entry.lastStarted === entry.epoch ? 'committed' : 'reverted')
      : null;
    if (closed !== null) ended.push(closed);
    const epoch = entry.epoch + rolledBackEpochStep;
    return {
      ...record,
      move: closed ?? move,
      origin: { kind: 'failover', fromEpoch: entry.epoch, incarnation: null },
      abortsAtEpoch: 0,
      entry: {
        ...entry, epoch,
        ...(entry.phase === 'absent' ? {} : { phase: 'owned', owner: entry.diskHolder }),
        previous: entry.owner, desired: 'stopped',
        // No image carries a stamp just below the new epoch: only cold starts are left.
        lastStarted: epoch - 1, startedBefore: epoch - 1, startedBy: null,
        cause: 'restored from a backup that may be old', changedAtMs: nowMs,
      },
    };
  });
  return { ...stored, vms, ended };
}
