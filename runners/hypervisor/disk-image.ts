/**
 * Disk images: empty ones, and copies of a source image after it was checked. Decides which images
 * are refused: the declared format must be the real one, and an image must not reach for another
 * file (backing, data) or a key. The check reads the copy, so nobody can change it in between.
 */
import { constants } from 'node:fs';
import { chmod, chown, open, readlink, rm, truncate, type FileHandle } from 'node:fs/promises';
import { CodedError } from '../../contracts/failures.ts';
import type { DiskSpec } from '../../contracts/runner.ts';
import type { QemuBinary } from './qemu-binary.ts';
import { runProgram } from './run-program.ts';

/** "QFI\xfb": first four bytes of every qcow2 image. */
const qcow2Magic = 0x514649fb;
/**
 * Incompatible features that only change how the same file is laid out: compression, extended L2.
 */
const qcow2FeaturesAllowed = 0b11000n;
/** How `qemu-img check` ends when clusters are only lost, not wrong. */
const leaksOnly = 3;
/** Copying a disk at `vm create`, ms: 100 GB at 30 MB/s. */
const copyTimeoutMs = 3600_000;

/** The facts of a qcow2 header that decide; null when the bytes are not qcow2. */
export function refusalOfHeader(header: Buffer, disk: DiskSpec): string | null {
  const isQcow2 = header.length >= 4 && header.readUInt32BE(0) === qcow2Magic;
  if (disk.format === 'raw') {
    return isQcow2 ? 'declared raw, but it begins like a qcow2 image' : null;
  }
  if (!isQcow2) return 'declared qcow2, but it is not';
  if (header.length < 72) return 'its header is cut off';
  const version = header.readUInt32BE(4);
  if (version !== 2 && version !== 3) return `qcow2 version ${version} is unknown`;
  if (header.readBigUInt64BE(8) !== 0n || header.readUInt32BE(16) !== 0)
    return 'it has a backing file';
  if (header.readUInt32BE(32) !== 0) return 'it is encrypted';
  if (header.readBigUInt64BE(24) > BigInt(disk.sizeBytes)) return 'it is larger than the disk';
  if (version === 2) return null;
  if (header.length < 104) return 'its header is cut off';
  const features = header.readBigUInt64BE(72);
  if ((features & 1n) !== 0n) return 'it was not closed cleanly';
  if ((features & 2n) !== 0n) return 'it is marked as corrupt';
  if ((features & 4n) !== 0n) return 'it has an external data file';
  return (features & ~qcow2FeaturesAllowed) === 0n ? null : 'it uses features unknown here';
}

/** What images are made with, and for whom. */
export interface ImageContext {
  readonly qemu: QemuBinary;
  readonly uid: number;
  readonly gid: number;
  /** Source images and kernels are taken from below these directories only. */
  readonly imageDirectories: readonly string[];
}

/** Makes the image of a disk at `path`: a copy of its source image, or empty. */
export async function makeDisk(
  options: { readonly disk: DiskSpec; readonly path: string },
  context: ImageContext,
): Promise<void> {
  const { disk, path } = options;
  if (disk.sourceImage === null) return makeEmptyDisk(options, context);
  await copyGuarded(
    { sourcePath: disk.sourceImage, path, bytesMax: disk.sizeBytes * 1.1 },
    context,
  );
  const refusal = refusalOfHeader(await readHeader(path), disk);
  if (refusal !== null) {
    await rm(path, { force: true });
    throw new CodedError('vm/image-refused', `${disk.sourceImage}: ${refusal}`);
  }
  if (disk.format === 'raw') return truncate(path, disk.sizeBytes);
  try {
    // As the VM's own user: a header that passed may still hold surprises for the parser. Tables that
    // point beyond the file are found by the check alone: resizing would mend them into zeros.
    await runImg(context, ['check', '-q', '-f', 'qcow2', path], [leaksOnly]);
    await runImg(context, ['resize', '-q', '-f', 'qcow2', path, String(disk.sizeBytes)]);
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
}

/** An empty image of the disk's virtual size and format, owned by the VM's user. */
export async function makeEmptyDisk(
  options: { readonly disk: Pick<DiskSpec, 'format' | 'sizeBytes'>; readonly path: string },
  context: ImageContext,
): Promise<void> {
  const { disk, path } = options;
  const handle = await open(path, 'wx', 0o600);
  try {
    if (disk.format === 'raw') await handle.truncate(disk.sizeBytes);
    await handle.chown(context.uid, context.gid);
  } finally {
    await handle.close();
  }
  if (disk.format === 'raw') return;
  await runImg(context, ['create', '-q', '-f', 'qcow2', path, String(disk.sizeBytes)]);
}

const runImg = (
  context: ImageContext,
  args: readonly string[],
  answerCodes: readonly number[] = [],
): Promise<string> =>
  runProgram([...context.qemu.imgCommand, ...args], {
    answerCodes,
    failure: 'vm/image-refused',
    environment: context.qemu.environment,
    uid: context.uid,
    gid: context.gid,
    timeoutMs: copyTimeoutMs,
  });

/**
 * Copies a file that the requester named: a regular file, below an allowed directory, reached by
 * no symbolic link, not larger than `bytesMax`. Failure: vm/image-refused.
 */
export async function copyGuarded(
  options: { readonly sourcePath: string; readonly path: string; readonly bytesMax: number },
  context: ImageContext,
): Promise<void> {
  const { sourcePath, path } = options;
  const handle = await openSource(sourcePath);
  try {
    const fact = await handle.stat();
    const real = await readlink(`/proc/self/fd/${handle.fd}`);
    const refuse = (why: string): never => {
      throw new CodedError('vm/image-refused', `${sourcePath}: ${why}`);
    };
    if (!fact.isFile()) refuse('it is not a regular file');
    if (real !== sourcePath) refuse('it is reached through a link');
    if (!context.imageDirectories.some((root) => real.startsWith(`${root.replace(/\/+$/, '')}/`))) {
      refuse('it is outside the image directories of this host');
    }
    if (fact.size > options.bytesMax) refuse(`${fact.size} bytes are more than allowed`);
    await runProgram(
      [
        'cp',
        '--sparse=always',
        '--reflink=auto',
        '--',
        `/proc/${process.pid}/fd/${handle.fd}`,
        path,
      ],
      { failure: 'disk/full', timeoutMs: copyTimeoutMs },
    );
  } finally {
    await handle.close();
  }
  await chown(path, context.uid, context.gid);
  await chmod(path, 0o600);
}

async function openSource(sourcePath: string): Promise<FileHandle> {
  try {
    return await open(sourcePath, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw new CodedError('vm/image-refused', `${sourcePath}: ${(error as Error).message}`, error);
  }
}

async function readHeader(path: string): Promise<Buffer> {
  const handle = await open(path, 'r');
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(4096), 0, 4096, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}
