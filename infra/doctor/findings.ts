/** What follows from what was observed on a host. Pure; the observing is in observe.ts. */

/** What the probes saw; null where a probe could not run, with the reason in `problems`. */
export interface Observations {
  readonly kernelRelease: string;
  readonly accelerator: { readonly accelerator: 'kvm' | 'tcg'; readonly reason: string };
  readonly emulationProblem: string | null;
  readonly kernel: KernelProbe | null;
  readonly qemuVersion: string | null;
  readonly machineTypes: readonly string[];
  readonly secondQemuVersion: string | null;
  readonly congestionControls: readonly string[];
  readonly rdmaDevices: readonly string[];
  readonly hasCgroup2: boolean;
  readonly bridgeSetProblem: string | null;
  /** Programs that a runner calls and that are not on PATH. */
  readonly programsMissing: readonly string[];
  readonly isRoot: boolean;
  readonly syncMsP50: number | null;
  readonly memoryBytes: number;
  readonly memoryFreeBytes: number;
  readonly diskFreeBytes: number | null;
  readonly clockSource: string;
}

/** As native/probe prints it. */
export interface KernelProbe {
  readonly userfaultfdCall: boolean;
  readonly userfaultfdDevice: boolean;
  readonly writeProtectAsync: boolean;
  readonly minorFaultsOnSharedMemory: boolean;
  readonly missingFaultsOnSharedMemory: boolean;
  readonly dirtyTracking: boolean;
  readonly reason: string | null;
}

/** One line of the report: what was found and what follows from it. */
export interface Finding {
  readonly subject: string;
  readonly state: 'good' | 'limited' | 'missing';
  readonly found: string;
  readonly follows: string;
}

const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
/** Above this every ledger step is felt in the downtime: two of them are in it. */
const syncMsGood = 2;

function trackingFinding(kernel: KernelProbe | null): Finding {
  const subject = 'dirty tracking (PAGEMAP_SCAN)';
  if (kernel === null) {
    return { subject, state: 'missing', found: 'the probe is not built',
      follows: 'Run `npm run setup`, then ask again.' };
  }
  return kernel.dirtyTracking
    ? { subject, state: 'good', found: 'three written pages were found among 64',
      follows: 'Moves use the direct engine.' }
    : { subject, state: 'missing', found: kernel.reason ?? 'it does not work',
      follows: 'The direct engine does not run here: Linux 6.7 or newer, as root.' };
}

function postCopyFinding(kernel: KernelProbe | null): Finding {
  const works = kernel?.minorFaultsOnSharedMemory === true && kernel.missingFaultsOnSharedMemory;
  return { subject: 'post-copy (userfaultfd on shared memory)', state: works ? 'good' : 'limited',
    found: works ? 'minor and missing faults are offered' : 'not offered',
    follows: works ? 'This host can be the target of a hybrid move.'
      : 'A guest that writes faster than the link can not be moved here.' };
}

function acceleratorFinding({ accelerator, emulationProblem }: Observations): Finding {
  if (accelerator.accelerator === 'kvm') {
    return { subject: 'accelerator', state: 'good',
      found: accelerator.reason, follows: 'VMs run under KVM.' };
  }
  return { subject: 'accelerator', state: emulationProblem === null ? 'limited' : 'missing',
    found: accelerator.reason,
    follows: emulationProblem === null ? 'VMs run under TCG: complete, and many times slower.'
      : `No VM runs here: ${emulationProblem}.` };
}

function qemuFindings(seen: Observations): Finding[] {
  const { qemuVersion, machineTypes, secondQemuVersion } = seen;
  const newest = machineTypes.find((name) => name.startsWith('pc-i440fx')) ?? 'none';
  return [
    { subject: 'QEMU', state: qemuVersion === null ? 'missing' : 'good',
      found: qemuVersion ?? 'not installed',
      follows: qemuVersion === null ? 'apt-get install qemu-system-x86'
        : `${machineTypes.length} versioned machine types, newest ${newest}.` },
    { subject: 'second QEMU for comparisons',
      state: secondQemuVersion === null ? 'limited' : 'good',
      found: secondQemuVersion ?? 'not unpacked',
      follows: secondQemuVersion === null ? '`npm run bench` unpacks it.'
        : 'The benchmark measures its engines.' },
  ];
}

function networkFindings(seen: Observations): Finding[] {
  const { congestionControls, rdmaDevices, bridgeSetProblem } = seen;
  const hasBbr = congestionControls.includes('bbr');
  return [
    { subject: 'congestion control', state: hasBbr ? 'good' : 'limited',
      found: congestionControls.join(' '),
      follows: hasBbr ? 'Lossy long links are used well (bbr).'
        : 'Loss on long links costs rate: load tcp_bbr.' },
    { subject: 'RDMA', state: rdmaDevices.length > 0 ? 'good' : 'limited',
      found: rdmaDevices.join(' ') || 'no device', follows: 'Moves go over TCP with TLS.' },
    { subject: 'NIC gate (nftables bridge set)',
      state: bridgeSetProblem === null ? 'good' : 'missing',
      found: bridgeSetProblem ?? 'an element with a timeout was taken in a namespace',
      follows: bridgeSetProblem === null ? 'A host that lost a VM goes silent by itself.'
        : 'VMs can not be fenced here: nftables and root are needed.' },
  ];
}

/** The programs that a runner calls besides QEMU itself, and the Debian package of each. */
export const runnerPrograms = {
  'busybox': 'busybox', 'ip': 'iproute2', 'nft': 'nftables', 'qemu-img': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
} as const;

function packagesOf(programs: readonly string[]): string {
  const packages: Readonly<Record<string, string>> = runnerPrograms;
  return [...new Set(programs.map((program) => packages[program] ?? program))].join(' ');
}

function hostFindings(seen: Observations): Finding[] {
  const { syncMsP50, memoryBytes, memoryFreeBytes, diskFreeBytes } = seen;
  const isFast = syncMsP50 !== null && syncMsP50 <= syncMsGood;
  const lacking = seen.programsMissing.join(', ');
  return [
    { subject: 'programs', state: lacking === '' ? 'good' : 'missing',
      found: lacking === '' ? 'all that a runner calls' : `not on PATH: ${lacking}`,
      follows: lacking === '' ? 'Nothing to install.'
        : `apt-get install ${packagesOf(seen.programsMissing)}` },
    { subject: 'rights', state: seen.isRoot ? 'good' : 'limited',
      found: seen.isRoot ? 'root' : 'not root',
      follows: seen.isRoot ? 'Lab and runner can be started.' : 'Lab and runner need root.' },
    { subject: 'cgroup v2', state: seen.hasCgroup2 ? 'good' : 'limited',
      found: seen.hasCgroup2 ? 'mounted' : 'not mounted',
      follows: seen.hasCgroup2 ? 'CPU of VMs is counted apart.'
        : 'CPU of VMs is counted by process.' },
    { subject: 'disk flush', state: isFast ? 'good' : 'limited',
      found: syncMsP50 === null ? 'could not be measured'
        : `fdatasync ${syncMsP50.toFixed(2)} ms (median)`,
      follows: 'Two ledger writes are part of the downtime of each move.' },
    { subject: 'memory', state: 'good',
      found: `${gibibytes(memoryFreeBytes)} free of ${gibibytes(memoryBytes)}`,
      follows: 'A move needs the guest\'s memory at the target.' },
    { subject: 'disk', state: diskFreeBytes === null ? 'limited' : 'good',
      found: diskFreeBytes === null ? 'unknown' : `${gibibytes(diskFreeBytes)} free`,
      follows: 'A move copies local disks to the target.' },
    { subject: 'clock', state: 'good',
      found: seen.clockSource, follows: 'Leases use the monotonic clock.' },
  ];
}

/** All findings, the ones that decide most first. */
export function findingsOf(seen: Observations): readonly Finding[] {
  return [
    { subject: 'kernel', state: 'good',
      found: seen.kernelRelease, follows: 'What it can do was tried below.' },
    acceleratorFinding(seen),
    trackingFinding(seen.kernel),
    postCopyFinding(seen.kernel),
    ...qemuFindings(seen),
    ...networkFindings(seen),
    ...hostFindings(seen),
    { subject: 'embedded Temporal', state: 'limited', found: 'dev server with a SQLite file',
      follows: 'It listens on loopback and the lab bridge only and is for one machine.' },
  ];
}

/** The engine that moves take on this host. */
export const engineOf = (seen: Observations): 'direct' | 'none' =>
  seen.kernel?.dirtyTracking === true && seen.qemuVersion !== null ? 'direct' : 'none';
