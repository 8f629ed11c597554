/** The guest image and the QEMU of the lab, as the bootstrap has left them in .cache. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';

/** The project's folder. */
export const projectRoot = fileURLToPath(new URL('..', import.meta.url));
/** What the bootstrap keeps between runs. */
export const cacheDirectory = join(projectRoot, '.cache');

const imageFile = z.object({ path: z.string(), bytes: z.number() });
const guestDescription = z.object({
  version: z.literal(1),
  kernelCommandLine: z.string(),
  redisPort: z.int(),
  witnessPort: z.int(),
  files: z.object({
    'vmlinuz': imageFile, 'initrd': imageFile, 'data.raw': imageFile, 'data.qcow2': imageFile,
  }),
});

/** The lab's guest; paths are readable for the users that QEMU runs as. */
export interface GuestImage {
  readonly kernel: string;
  readonly initrd: string;
  readonly dataRaw: string;
  readonly dataQcow2: string;
  readonly kernelCommandLine: string;
  readonly redisPort: number;
  readonly witnessPort: number;
}

function readDescription<T>(path: string, shape: z.ZodType<T>, what: string): T {
  if (!existsSync(path)) {
    throw new CodedError('input/invalid', `${what} is missing (${path}): run \`npm run setup\``);
  }
  return shape.parse(JSON.parse(readFileSync(path, 'utf8')));
}

/**
 * Reads the guest's description and copies its files into `directory`, because the project may lie
 * where only its owner can read. Failure: input/invalid when it was never built.
 */
export function placeGuestImage(
  directory: string, descriptionPath = join(cacheDirectory, 'guest/guest.json'),
): GuestImage {
  const description = readDescription(descriptionPath, guestDescription, 'the guest image');
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const place = (name: keyof typeof description.files): string => {
    const path = join(directory, name);
    if (!existsSync(path)) copyFileSync(description.files[name].path, path);
    return path;
  };
  return {
    kernel: place('vmlinuz'),
    initrd: place('initrd'),
    dataRaw: place('data.raw'),
    dataQcow2: place('data.qcow2'),
    kernelCommandLine: description.kernelCommandLine,
    redisPort: description.redisPort,
    witnessPort: description.witnessPort,
  };
}

const qemuDescription = z.object({
  command: z.array(z.string()).min(1),
  environment: z.record(z.string(), z.string()).default({}),
  qemuImg: z.array(z.string()).optional(),
});
/** How a QEMU is started: words before the options, and what its environment needs. */
export type QemuProgram = z.infer<typeof qemuDescription>;

/** The QEMU that this machine has itself. */
export const systemQemuProgram: QemuProgram = {
  command: ['qemu-system-x86_64'], environment: {}, qemuImg: ['qemu-img'],
};

/** QEMU 10 of the lab's cache, or the one that a file describes. */
export function readQemuProgram(path = join(cacheDirectory, 'qemu-10/qemu.json')): QemuProgram {
  return readDescription(path, qemuDescription, 'QEMU 10');
}

/** Others may read a file, or pass through a folder. */
const [othersRead, othersPass] = [0o004, 0o001];

/**
 * The first folder or file on the way to `path` that a user without rights of its own can't pass
 * or read; null when there is none.
 */
export function barredForOthers(path: string): string | null {
  const file = realpathSync(path);
  for (let folder = dirname(file); ; folder = dirname(folder)) {
    if ((statSync(folder).mode & othersPass) === 0) return folder;
    if (folder === dirname(folder)) break;
  }
  return (statSync(file).mode & othersRead) === 0 ? file : null;
}

/**
 * VMMs run as users of their own: fails with input/invalid when they can't read the QEMU that they
 * are started with (words of its command that are paths of files).
 */
export function requireReadableForVms(program: QemuProgram): void {
  const paths = program.command.filter((word) => word.startsWith('/') && existsSync(word));
  for (const path of paths) {
    const bar = barredForOthers(path);
    if (bar === null) continue;
    throw new CodedError('input/invalid',
      `VMs run as users of their own, who can't read ${path}: allow it with \`chmod o+rx ${bar}\`, `
      + 'or put the project where everybody may read');
  }
}
