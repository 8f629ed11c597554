/**
 * Which QEMU runs the VMs and what it offers. A QEMU may need its own loader and environment, so a
 * binary is an argument list, not a path.
 */
import { runProgram } from './run-program.ts';
import { CodedError } from '../../contracts/failures.ts';

/** A QEMU and its qemu-img as argument lists; further arguments are appended. */
export interface QemuBinary {
  readonly command: readonly string[];
  readonly imgCommand: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  /** As `--version` says, e.g. 7.2.22. */
  readonly version: string;
}

/** Oldest QEMU that the engine was tried with. */
export const qemuMajorMin = 7;

/**
 * Asks a QEMU for its version and refuses one that is too old.
 * Failures: preflight/qemu, vm/start-failed (it does not run).
 */
export async function probeQemu(binary: Omit<QemuBinary, 'version'>): Promise<QemuBinary> {
  const text = await runProgram([...binary.command, '--version'], {
    failure: 'vm/start-failed',
    environment: binary.environment,
  });
  const match = /version (\d+)\.(\d+)\.(\d+)/.exec(text);
  if (match === null) throw new CodedError('preflight/qemu', text.slice(0, 80));
  const version = match.slice(1, 4).join('.');
  if (Number(match[1]) < qemuMajorMin) throw new CodedError('preflight/qemu', version);
  return { ...binary, version };
}

/** The distribution's QEMU from PATH. */
export const probeSystemQemu = (): Promise<QemuBinary> =>
  probeQemu({ command: ['qemu-system-x86_64'], imgCommand: ['qemu-img'], environment: {} });

/**
 * A QEMU unpacked below `root` (a Debian tree), run through that tree's own loader and libraries.
 * Without both `-L` it would silently take the ROMs of the host.
 */
export function probeUnpackedQemu(root: string): Promise<QemuBinary> {
  const libraries = `${root}/usr/lib/x86_64-linux-gnu`;
  const loader = [
    `${root}/lib64/ld-linux-x86-64.so.2`,
    '--library-path',
    `${libraries}:${root}/lib/x86_64-linux-gnu`,
  ];
  return probeQemu({
    command: [
      ...loader,
      `${root}/usr/bin/qemu-system-x86_64`,
      '-L',
      `${root}/usr/share/qemu`,
      '-L',
      `${root}/usr/share/seabios`,
    ],
    imgCommand: [...loader, `${root}/usr/bin/qemu-img`],
    environment: { QEMU_MODULE_DIR: `${libraries}/qemu` },
  });
}

/** Versioned machine types that this QEMU offers (pc-i440fx-*, pc-q35-*). */
export async function listMachineTypes(binary: QemuBinary): Promise<readonly string[]> {
  const text = await runProgram([...binary.command, '-machine', 'help'], {
    failure: 'vm/start-failed',
    environment: binary.environment,
  });
  return text
    .split('\n')
    .flatMap((line) => /^(pc-(?:i440fx|q35)-\d+\.\d+)\s/.exec(line)?.[1] ?? []);
}
