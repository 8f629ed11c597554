/** What the hypervisor layer of a host is told once, by the composition root. */
import type { Logger } from 'pino';
import type { HostName } from '../../contracts/identity.ts';
import type { Firmware } from './command-line.ts';
import type { QemuBinary } from './qemu-binary.ts';
import type { VolumeLinkConfig } from './volume-links.ts';

/** What a host's hypervisor layer is told once. */
export interface HypervisorConfig {
  readonly host: HostName;
  /** Directory of the VM directories; root's, passable for everybody (0711). */
  readonly vmsDirectory: string;
  /** A tmpfs, for the memory files. */
  readonly memoryDirectory: string;
  /** novacron-guard, with whatever must stand before its own arguments. */
  readonly guardCommand: readonly string[];
  readonly qemu: QemuBinary;
  /** What leads VMMs to shared volumes; null where no VM has any. */
  readonly volumes: VolumeLinkConfig | null;
  readonly accelerator: 'tcg' | 'kvm';
  /** Each VM gets a user of its own out of this range; ranges of hosts on one machine differ. */
  readonly uids: { readonly first: number; readonly count: number };
  /** Source images and kernels are taken from below these only. */
  readonly imageDirectories: readonly string[];
  /** Bridge that carries each segment, in this process's network namespace. */
  readonly bridges: Readonly<Record<string, string>>;
  readonly firmware: Firmware;
  readonly logger: Logger;
}
