/**
 * Compares the disks of both sides of a move, block by block, while nobody writes them: the source's
 * VM is stopped, the target's has not run its first instruction. What is digested is the content of
 * the virtual disk, never the file: a qcow2 image is read through qemu-img first.
 */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { runCommand } from '../command.ts';
import { projectRoot } from '../guest-image.ts';
import type { QemuProgram } from '../guest-image.ts';

/** Bytes of one digested block: 2 GiB are 8192 of them. */
export const digestedBlockBytes = 262_144;
/** Reading 2 GiB twice takes a second or two; some minutes where the machine is busy. */
const compareMsMax = 300_000;
const program = join(projectRoot, 'native/target/release/novacron-image-digest');

const imageShape = z.object({ bytes: z.number(), dataRanges: z.number(), digest: z.string() });
const reportShape = z.object({
  version: z.literal(1), rangeBytes: z.number(), images: z.tuple([imageShape, imageShape]),
  unequalCount: z.number(), unequal: z.array(z.number()),
});

/** What was found; digests are blake3 over all block digests. */
export interface DiskComparison {
  readonly blockBytes: number;
  readonly blocks: number;
  /** Blocks that hold something else than zeros at the source. */
  readonly dataBlocks: number;
  readonly sourceDigest: string;
  readonly targetDigest: string;
  readonly unequalBlocks: number;
  /** The first of them, by number. */
  readonly firstUnequal: readonly number[];
  /** Time that reading and comparing took, ms. */
  readonly tookMs: number;
}

/** Reads both images and compares them. Failure: input/invalid when the program was never built. */
export async function compareDisks(options: {
  readonly format: 'raw' | 'qcow2';
  readonly source: string;
  readonly target: string;
  readonly qemu: Pick<QemuProgram, 'qemuImg' | 'environment'>;
  /** Room for the raw contents of both; made and removed. */
  readonly scratch: string;
}): Promise<DiskComparison> {
  const { format, source, target, qemu, scratch } = options;
  if (!existsSync(program)) {
    throw new CodedError('input/invalid', `${program} is missing: run \`npm run setup\``);
  }
  const begunMs = performance.now();
  mkdirSync(scratch, { recursive: true });
  try {
    const paths = await Promise.all([['source', source], ['target', target]].map(
      async ([side = '', path = '']) => {
        if (format === 'raw') return path;
        const raw = join(scratch, `${side}.raw`);
        // -U: the VMMs hold their images open; they do not write them now.
        await runCommand([
          ...(qemu.qemuImg ?? ['qemu-img']), 'convert', '-U', '-f', format, '-O', 'raw', path, raw,
        ], { timeoutMs: compareMsMax, environment: qemu.environment });
        return raw;
      }));
    const output = await runCommand(
      [program, String(digestedBlockBytes), ...paths], { timeoutMs: compareMsMax });
    const { images: [first, second], ...report } = reportShape.parse(JSON.parse(output));
    return {
      blockBytes: report.rangeBytes, blocks: Math.ceil(first.bytes / report.rangeBytes),
      dataBlocks: first.dataRanges, sourceDigest: first.digest, targetDigest: second.digest,
      unequalBlocks: report.unequalCount, firstUnequal: report.unequal,
      tookMs: Math.round(performance.now() - begunMs),
    };
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
