/**
 * What a host runner is asked to do with a VM and what it answers. Types only plus the parsers of
 * what comes from outside; hosts and VM specs are kept in the ownership ledger, nowhere else.
 */
import { z } from 'zod';
import { limits } from './limits.ts';
import type { HostName, Incarnation, VmName } from './identity.ts';
import { isVmName } from './identity.ts';

const isPlainAddress = (text: string): boolean =>
  /^\d{1,3}(\.\d{1,3}){3}$/.test(text) || /^[0-9a-fA-F:]{2,39}$/.test(text);

const imagePath = z
  .string()
  .max(limits.pathLengthMax)
  .regex(/^\/[A-Za-z0-9._/-]+$/, 'an absolute path of letters, digits, . _ - and /')
  .refine((path) => !path.split('/').includes('..'), 'must not contain ..');

/**
 * A disk on a volume server (docs/guides/shared-volumes.md): it outlives the VM's host, and a move
 * copies no block of it.
 */
export const sharedVolume = z.strictObject({
  kind: z.literal('shared'),
  /** Name of the volume at its server. */
  name: z.string().regex(/^[a-z][a-z0-9-]{0,39}$/),
  server: z.strictObject({
    /** The server's certificate is `volume/NAME`. */
    name: z.string().regex(/^[a-z][a-z0-9-]{0,39}$/),
    address: z.string().refine(isPlainAddress, 'an IP address'),
    port: z.int().min(1).max(65_535),
  }),
});
export type SharedVolume = z.infer<typeof sharedVolume>;

/** One disk of a VM; `local` lives and dies with its host. */
export const diskSpec = z.strictObject({
  name: z.string().regex(/^[a-z][a-z0-9]{0,15}$/),
  format: z.enum(['raw', 'qcow2']),
  sizeBytes: z.int().min(1 << 20).max(limits.diskBytesMax),
  /** Image that is copied into a new disk at `vm create`; null for an empty one. */
  sourceImage: imagePath.nullable(),
  volume: z.union([z.literal('local'), sharedVolume]),
}).refine(
  ({ volume, format, sourceImage }) =>
    volume === 'local' || (format === 'raw' && sourceImage === null),
  'a shared volume is raw and was filled at its server: format raw, sourceImage null',
);

/** One network card; the address is what preflight compares with the target's segment. */
export const nicSpec = z.strictObject({
  name: z.string().regex(/^[a-z][a-z0-9]{0,7}$/),
  macAddress: z.string().regex(/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/),
  /** IPv4 address in CIDR form that the guest uses, e.g. 198.18.1.10/24. */
  address: z.string().regex(/^\d{1,3}(\.\d{1,3}){3}\/\d{1,2}$/),
  /** Name of the layer-2 segment; a host lists the segments it carries. */
  segment: z.string().regex(/^[a-z][a-z0-9-]{0,19}$/),
});

const kernelBoot = z.strictObject({
  kind: z.literal('kernel'),
  kernel: imagePath,
  initrd: imagePath.nullable(),
  /** Kernel command line, without line breaks. */
  commandLine: z.string().max(limits.commandLineLengthMax).regex(/^[\x20-\x7e]*$/),
});
const diskBoot = z.strictObject({
  kind: z.literal('disk'),
  firmware: z.enum(['bios', 'uefi']),
  /** NoCloud seed image made by `vm create`, null without cloud-init. */
  cloudInitUserData: z.string().max(limits.cloudInitLengthMax).nullable(),
});

/** What a user asks for: `vm create --spec FILE` and the payload of `createVm`. */
export const vmSpec = z.strictObject({
  version: z.literal(1),
  name: z.string().refine(isVmName, "1 to 40 of a-z, 0-9 and '-', starting with a letter"),
  vcpuCount: z.int().min(1).max(limits.vcpuCountMax),
  memoryBytes: z
    .int()
    .min(limits.memoryBytesMin)
    .max(limits.memoryBytesMax)
    .refine((size) => size % (1 << 20) === 0, 'a whole number of MiB'),
  /**
   * Versioned machine type, e.g. pc-i440fx-7.2; never an alias, which would differ between hosts.
   */
  machineType: z.string().regex(/^pc-(i440fx|q35)-\d{1,2}\.\d$/),
  /** Named CPU model (qemu64, Skylake-Server-v4, …); host and max would pin the VM to its host. */
  cpuModel: z.string().regex(/^[A-Za-z][A-Za-z0-9_-]{1,39}$/).refine((m) => m !== 'host' && m !== 'max'),
  disks: z.array(diskSpec).max(limits.diskCountMax),
  nics: z.array(nicSpec).max(limits.nicCountMax),
  boot: z.discriminatedUnion('kind', [kernelBoot, diskBoot]),
  /**
   * `automatic` binds the VM to its lease; `none` (the default) never pauses it for a silent
   * ledger.
   */
  failover: z.enum(['none', 'automatic']),
});
export type VmSpec = z.infer<typeof vmSpec>;
export type DiskSpec = z.infer<typeof diskSpec>;
/** The disks that are on volume servers, in the spec's order. */
export const sharedDisks = (
  { disks }: Pick<VmSpec, 'disks'>,
): readonly (DiskSpec & { readonly volume: SharedVolume })[] =>
  disks.flatMap((disk) => (disk.volume === 'local' ? [] : [{ ...disk, volume: disk.volume }]));
/** The disks that are on the VM's host only, in the spec's order. */
export const localDisks = ({ disks }: Pick<VmSpec, 'disks'>): readonly DiskSpec[] =>
  disks.filter(({ volume }) => volume === 'local');
/**
 * Whether another host can start the VM when its own is gone: it has disks, all are shared, and no
 * firmware variables lie on its host.
 */
export const outlivesItsHost = ({ disks, boot }: Pick<VmSpec, 'disks' | 'boot'>): boolean =>
  disks.length > 0 && disks.every(({ volume }) => volume !== 'local')
  && !(boot.kind === 'disk' && boot.firmware === 'uefi');
export type NicSpec = z.infer<typeof nicSpec>;

/** What a host told about itself when it joined and at each start of its runner. */
export const hostFacts = z.strictObject({
  version: z.literal(1),
  name: z.string(),
  /** Address and port where peers reach its migration listeners. */
  migrationAddress: z.string(),
  peerPort: z.int(),
  lanePort: z.int(),
  segments: z.array(z.string()),
  accelerator: z.enum(['kvm', 'tcg']),
  qemuVersion: z.string(),
  machineTypes: z.array(z.string()),
  kernelRelease: z.string(),
  memoryBytes: z.int(),
  diskFreeBytes: z.int(),
  cpuFlags: z.array(z.string()),
  features: z.array(z.string()),
});
export type HostFacts = z.infer<typeof hostFacts>;

/** Run state of a VMM as seen from outside. */
export type VmRunState =
  | 'absent' | 'starting' | 'incoming' | 'running' | 'paused' | 'stopped' | 'failed';

/** One block device of a running VM, as its VMM reports it. */
export interface RunningDisk {
  readonly name: string;
  readonly nodeName: string;
  readonly format: 'raw' | 'qcow2';
  readonly sizeBytes: number;
  readonly path: string;
  /** Host cache in between: false for O_DIRECT, whose in-flight DMA dirty tracking can't see. */
  readonly buffered: boolean;
  /** Where it is when it is on a volume server; absent for a local disk. */
  readonly shared?: SharedVolume;
}

/**
 * A VM as it runs, asked of its VMM; the target is built from this and not from what the VM was
 * started with. `exact` lists what keeps the direct engine from being exact; empty means none.
 */
export interface RunningVm {
  readonly version: 1;
  readonly name: VmName;
  readonly host: HostName;
  readonly runState: VmRunState;
  readonly incarnation: Incarnation;
  readonly vmmPid: number;
  readonly qemuVersion: string;
  readonly machineType: string;
  readonly cpuModel: string;
  readonly vcpuCount: number;
  readonly memoryBytes: number;
  readonly disks: readonly RunningDisk[];
  readonly nics: readonly NicSpec[];
  readonly boot: VmSpec['boot'];
  readonly failover: VmSpec['failover'];
  /** Enabled CPU feature flags that the target must have. */
  readonly cpuFlags: readonly string[];
  readonly exactnessObstacles: readonly string[];
  /** A balloon may take pages back without a trace, so holes are looked for in the blackout. */
  readonly balloon: boolean;
}
