/**
 * Copying disks while the guest writes: NBD exports at the target, mirror jobs at the source.
 * Decides how a mirror is proved complete and how it ends without residue; when to do what is left
 * to the hand-over, and the bytes between the two sockets to the data plane.
 */
import { CodedError } from '../../contracts/failures.ts';
import type { QmpClient } from './qmp/client.ts';
import { QmpRefusal } from './qmp/client.ts';
import { blockJobsReply, blockNodesReply, exportsReply } from './qmp/replies.ts';
import { diskNode } from './command-line.ts';

/** How often a job is asked while it is waited for outside the blackout, ms. */
const pollEveryMs = 100;
/** Inside the blackout, ms: one question takes 0.3. */
const pollEveryMsStopped = 1;
/** Ending a mirror that is in sync takes 1-2 ms; a hanging link is cut by its owner before this. */
const endTimeoutMs = 10_000;

const mirrorJob = (disk: string): string => `mirror-${disk}`;
const mirrorNode = (disk: string): string => `remote-${disk}`;
const exportId = (disk: string): string => `export-${disk}`;

/**
 * How guest writes reach the target: after the fact, or before the guest is told that they are
 * done.
 */
export type MirrorMode = 'background' | 'write-blocking';

/**
 * Where a mirror stands; `bytesDone` of `bytesTotal`, the total grows with what the guest writes.
 */
export interface MirrorProgress {
  readonly disk: string;
  readonly bytesTotal: number;
  readonly bytesDone: number;
  readonly ready: boolean;
  /** Every guest write is at the target before the guest hears of it. Null where QEMU can't say. */
  readonly activelySynced: boolean | null;
  readonly failed: boolean;
}

/** Target: serves the disks, writable, to one connection each, on a socket that the VMM makes. */
export async function openExports(
  qmp: QmpClient,
  options: { readonly disks: readonly string[]; readonly socketPath: string },
): Promise<void> {
  if (options.disks.length === 0) return;
  await qmp.execute('nbd-server-start', {
    arguments: { addr: { type: 'unix', data: { path: options.socketPath } } },
  });
  for (const disk of options.disks) {
    await qmp.execute('block-export-add', {
      arguments: {
        type: 'nbd',
        id: exportId(disk),
        'node-name': diskNode(disk),
        name: disk,
        writable: true,
      },
    });
  }
}

/**
 * Target: takes all exports away, for good; resolves when no connection can write any more. Must be
 * done before the guest starts. Nothing happens when there are none.
 */
export async function closeExports(qmp: QmpClient): Promise<void> {
  const open = await qmp.execute('query-block-exports', { reply: exportsReply });
  await Promise.all(
    open.map(async ({ id, 'shutting-down': leaving }) => {
      const deleted = qmp.expectEvent('BLOCK_EXPORT_DELETED', {
        timeoutMs: endTimeoutMs,
        match: (event) => event.data['id'] === id,
      });
      try {
        if (!leaving) await qmp.execute('block-export-del', { arguments: { id, mode: 'hard' } });
        await deleted.arrived;
      } finally {
        deleted.cancel();
      }
    }),
  );
  await ignoreRefusal(qmp.execute('nbd-server-stop'));
}

/** Target: makes every byte that the exports took durable in the image files. */
export async function flushDisks(qmp: QmpClient, disks: readonly string[]): Promise<void> {
  // An NBD flush by the source reached the file; this one covers what came after it.
  for (const disk of disks) {
    await qmp.execute('human-monitor-command', {
      arguments: { 'command-line': `qemu-io -d ${diskNode(disk)} flush` },
    });
  }
}

/** Source: starts copying one disk to the export of that name behind `socketPath`. */
export async function startMirror(
  qmp: QmpClient,
  options: {
    readonly disk: string;
    readonly socketPath: string;
    /** 0 = no cap. */
    readonly bandwidthBytesPerSecond: number;
    readonly mode: MirrorMode;
  },
): Promise<void> {
  const { disk } = options;
  await qmp.execute('blockdev-add', {
    arguments: {
      driver: 'nbd',
      'node-name': mirrorNode(disk),
      export: disk,
      server: { type: 'unix', path: options.socketPath },
    },
  });
  try {
    await qmp.execute('blockdev-mirror', {
      arguments: {
        'job-id': mirrorJob(disk),
        device: diskNode(disk),
        target: mirrorNode(disk),
        sync: 'full',
        'copy-mode': options.mode,
        speed: options.bandwidthBytesPerSecond,
        // The target may vanish: the guest must never notice, so the job ends and its disk goes on.
        'on-target-error': 'report',
        'on-source-error': 'report',
      },
    });
  } catch (error) {
    await removeMirrorNode(qmp, disk);
    throw new CodedError(
      'disk/mirror',
      error instanceof Error ? error.message : String(error),
      error,
    );
  }
}

/**
 * Source: where the mirror of a disk stands; null when there is none (it never was, or it ended).
 */
export async function mirrorProgress(qmp: QmpClient, disk: string): Promise<MirrorProgress | null> {
  const jobs = await qmp.execute('query-block-jobs', { reply: blockJobsReply });
  const job = jobs.find((candidate) => candidate.device === mirrorJob(disk));
  if (job === undefined) return null;
  return {
    disk,
    bytesTotal: job.len,
    bytesDone: job.offset,
    ready: job.ready && job.status === 'ready',
    activelySynced: job['actively-synced'] ?? null,
    failed: job['io-status'] !== 'ok' || job.error !== undefined,
  };
}

/** How a mirror calls a full target; NBD carries the error number, QEMU writes it as text. */
const noSpaceLeft = /no space left/i;

/**
 * Source: why a mirror ended that should not have, from the events since `sinceEvent` (the mark from
 * before its start): `disk/full` when the target had no room left, else `disk/mirror`.
 */
export function mirrorFailure(
  qmp: Pick<QmpClient, 'seenSince'>,
  options: { readonly disk: string; readonly sinceEvent: number },
): CodedError {
  const { disk, sinceEvent } = options;
  const end = qmp
    .seenSince('BLOCK_JOB_COMPLETED', sinceEvent)
    .findLast(({ data }) => data['device'] === mirrorJob(disk));
  const said = end?.data['error'];
  const why = typeof said === 'string' ? said : 'the copy ended before it was in sync';
  return noSpaceLeft.test(why)
    ? new CodedError('disk/full', `${disk}: the target has no room left for it (${why})`)
    : new CodedError('disk/mirror', `${disk}: ${why}`);
}

/**
 * Source: waits until the disk is in sync for the first time. Failures: disk/mirror, vmm/timeout.
 */
export async function waitMirrorReady(
  qmp: QmpClient,
  options: {
    readonly disk: string;
    readonly timeoutMs: number;
    readonly onProgress?: (progress: MirrorProgress) => void;
  },
): Promise<void> {
  await pollMirror(qmp, { ...options, everyMs: pollEveryMs }, async (progress) => {
    options.onProgress?.(progress);
    return progress.ready;
  });
}

/** Whether the mode of a running mirror can change (block-job-change, QEMU 8.2). */
export function canChangeMirrorMode(qmp: QmpClient): boolean {
  const { major, minor } = qmp.greeting;
  return major > 8 || (major === 8 && minor >= 2);
}

/** Source: asks for write-blocking and does not wait until it is in force. */
export async function askWriteBlocking(qmp: QmpClient, disk: string): Promise<void> {
  await qmp.execute('block-job-change', {
    arguments: { id: mirrorJob(disk), type: 'mirror', 'copy-mode': 'write-blocking' },
  });
}

/**
 * Source: from here on a guest write is at the target before the guest hears of it. Possible while
 * the job runs since QEMU 8.2; before, answers false: the mode given at the start stays.
 */
export async function switchToWriteBlocking(
  qmp: QmpClient,
  options: { readonly disk: string; readonly timeoutMs: number },
): Promise<boolean> {
  if (!canChangeMirrorMode(qmp)) return false;
  await askWriteBlocking(qmp, options.disk);
  await pollMirror(
    qmp,
    { ...options, everyMs: 10 },
    async (progress) => progress.activelySynced === true,
  );
  return true;
}

/** Source: changes the cap of a running copy; 0 = none. */
export async function setMirrorSpeed(
  qmp: QmpClient,
  options: { readonly disk: string; readonly bandwidthBytesPerSecond: number },
): Promise<void> {
  await qmp.execute('block-job-set-speed', {
    arguments: { device: mirrorJob(options.disk), speed: options.bandwidthBytesPerSecond },
  });
}

/**
 * Source, after `stopVcpus`: waits until no block is dirty and none is in flight. The job stays, so
 * that an abort goes on with it. Its progress alone may be 100 ms old; the dirty bitmap is exact.
 */
export async function waitMirrorDrained(
  qmp: QmpClient,
  options: { readonly disk: string; readonly timeoutMs: number },
): Promise<void> {
  await pollMirror(qmp, { ...options, everyMs: pollEveryMsStopped }, async (progress) => {
    if (!progress.ready || progress.bytesDone !== progress.bytesTotal) return false;
    if (progress.activelySynced === true) return true;
    return (await dirtyBytes(qmp, options.disk)) === 0;
  });
}

async function dirtyBytes(qmp: QmpClient, disk: string): Promise<number> {
  const nodes = await qmp.execute('query-named-block-nodes', {
    arguments: { flat: true },
    reply: blockNodesReply,
  });
  const node = nodes.find((candidate) => candidate['node-name'] === diskNode(disk));
  return (node?.['dirty-bitmaps'] ?? []).reduce((sum, bitmap) => sum + bitmap.count, 0);
}

/**
 * Source: ends a mirror that is in sync with all writes at the target, and cuts the connection.
 * QEMU itself waits for the last block. Failure: disk/mirror, the copy is then worthless.
 */
export async function finishMirror(qmp: QmpClient, disk: string): Promise<void> {
  const done = expectJobEnd(qmp, disk);
  try {
    await qmp.execute('block-job-cancel', { arguments: { device: mirrorJob(disk), force: false } });
    const { name, data } = await done.arrived;
    if (
      name !== 'BLOCK_JOB_COMPLETED' ||
      data['error'] !== undefined ||
      data['len'] !== data['offset']
    ) {
      throw new CodedError('disk/mirror', `${disk}: ${String(data['error'] ?? 'ended too early')}`);
    }
  } catch (error) {
    if (!(error instanceof QmpRefusal)) throw error;
    throw new CodedError('disk/mirror', error.detail, error);
  } finally {
    done.cancel();
  }
  await removeMirrorNode(qmp, disk);
}

/**
 * Source: cuts the connection of a mirror at once, also while the whole VMM hangs because the peer
 * does not answer (a guest write that waits for it blocks the main loop at the next drain). The job
 * then fails by itself and the guest goes on. Nothing happens when there is none.
 */
export async function cutMirror(qmp: QmpClient, disk: string): Promise<void> {
  await ignoreRefusal(
    qmp.execute('yank', {
      arguments: { instances: [{ type: 'block-node', 'node-name': mirrorNode(disk) }] },
      outOfBand: true,
    }),
  );
}

/**
 * Source: drops a mirror in whatever state, also after the target is gone or while it stalls; the
 * VM goes on with no residue and a new mirror can be started. Nothing happens when there is none.
 */
export async function cancelMirror(qmp: QmpClient, disk: string): Promise<void> {
  await cutMirror(qmp, disk);
  const ended = expectJobEnd(qmp, disk);
  try {
    await qmp.execute('block-job-cancel', { arguments: { device: mirrorJob(disk), force: true } });
    await ended.arrived;
  } catch (error) {
    // No such job: it ended by itself.
    if (!(error instanceof QmpRefusal)) throw error;
  } finally {
    ended.cancel();
  }
  await removeMirrorNode(qmp, disk);
}

function expectJobEnd(
  qmp: QmpClient,
  disk: string,
): {
  readonly arrived: Promise<{
    readonly name: string;
    readonly data: Readonly<Record<string, unknown>>;
  }>;
  readonly cancel: () => void;
} {
  const wish = {
    timeoutMs: endTimeoutMs,
    match: (event: { readonly data: Readonly<Record<string, unknown>> }): boolean =>
      event.data['device'] === mirrorJob(disk),
  };
  const completed = qmp.expectEvent('BLOCK_JOB_COMPLETED', wish);
  const cancelled = qmp.expectEvent('BLOCK_JOB_CANCELLED', wish);
  const arrived = Promise.race([completed.arrived, cancelled.arrived]);
  arrived.catch(() => undefined);
  return {
    arrived,
    cancel: () => {
      completed.cancel();
      cancelled.cancel();
    },
  };
}

/** The job lets go of its node a moment after its last event. */
async function removeMirrorNode(qmp: QmpClient, disk: string): Promise<void> {
  const until = Date.now() + endTimeoutMs;
  for (;;) {
    try {
      await qmp.execute('blockdev-del', { arguments: { 'node-name': mirrorNode(disk) } });
      return;
    } catch (error) {
      if (!(error instanceof QmpRefusal)) throw error;
      if (/fail(ed)? to find|cannot find/i.test(error.description)) return;
      if (Date.now() > until) throw new CodedError('disk/mirror', error.detail, error);
    }
    await new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
  }
}

async function pollMirror(
  qmp: QmpClient,
  options: { readonly disk: string; readonly timeoutMs: number; readonly everyMs: number },
  done: (progress: MirrorProgress) => Promise<boolean>,
): Promise<void> {
  const until = Date.now() + options.timeoutMs;
  for (;;) {
    const progress = await mirrorProgress(qmp, options.disk);
    if (progress === null || progress.failed) {
      throw new CodedError('disk/mirror', `${options.disk}: the job ended before it was in sync`);
    }
    if (await done(progress)) return;
    if (Date.now() > until) {
      throw new CodedError('vmm/timeout', `${options.disk}: mirror after ${options.timeoutMs} ms`);
    }
    await new Promise((resolve) => {
      setTimeout(resolve, options.everyMs);
    });
  }
}

async function ignoreRefusal(command: Promise<unknown>): Promise<void> {
  try {
    await command;
  } catch (error) {
    if (!(error instanceof QmpRefusal)) throw error;
  }
}
