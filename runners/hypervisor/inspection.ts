/**
 * Asks a running VMM what it really is. Decides what keeps the direct engine from moving it exactly
 * (`exactnessObstacles`); the answers, not the spec, are what the target is built from. Only what a
 * VMM can't know (names of segments, addresses, how it was booted) comes from the spec.
 */
import { statfs } from 'node:fs/promises';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import type { HostName, Incarnation } from '../../contracts/identity.ts';
import {
  sharedDisks, type RunningDisk, type RunningVm, type VmSpec,
} from '../../contracts/runner.ts';
import {
  diskDevice,
  diskFileNode,
  diskNode,
  firstDiskSlot,
  firstNicSlot,
  nicDevice,
} from './command-line.ts';
import type { QmpClient } from './qmp/client.ts';
import {
  blockNodesReply,
  cpuExpansionReply,
  cpusReply,
  memoryBackendsReply,
  pciReply,
  qomListReply,
  rxFilterReply,
  statusReply,
  textReply,
} from './qmp/replies.ts';
import { runStateOf } from './vm-monitor.ts';

type BlockNode = z.infer<typeof blockNodesReply>[number];

/** Everything asked of the VMM, before any judgement. */
export interface VmmFacts {
  readonly status: string;
  readonly machineType: string;
  readonly cpuTypes: readonly string[];
  readonly cpuFlags: readonly string[];
  readonly backends: readonly MemoryBackend[];
  readonly machineBackend: string;
  readonly nodes: readonly BlockNode[];
  /** Ids and QOM types of the devices plugged by us or by anybody else. */
  readonly devices: readonly { readonly id: string; readonly type: string }[];
  readonly slots: Readonly<Record<string, number>>;
  readonly macs: Readonly<Record<string, string>>;
}
/** A memory backend as it was really made. */
export interface MemoryBackend {
  readonly id: string;
  readonly type: string;
  readonly sizeBytes: number;
  readonly share: boolean;
  /** Null for a backend without a file of its own. */
  readonly path: string | null;
  readonly hugePages: boolean;
}

/** File system type of hugetlbfs in statfs(2). */
const hugetlbfsMagic = 0x958458f6;
const anyProperty = z.unknown();

/**
 * Reads the facts; all questions of one step are sent at once. About 40 ms: not for the blackout.
 */
export async function readFacts(qmp: QmpClient): Promise<VmmFacts> {
  const get = async (path: string, property: string): Promise<string> =>
    await qmp.execute('qom-get', { arguments: { path, property }, reply: textReply });
  const [status, machine, machineBackend, cpus, memory, nodes, named, anonymous, pci, filters] =
    await Promise.all([
      qmp.execute('query-status', { reply: statusReply }),
      get('/machine', 'type'),
      get('/machine', 'memory-backend'),
      qmp.execute('query-cpus-fast', { reply: cpusReply }),
      qmp.execute('query-memdev', { reply: memoryBackendsReply }),
      qmp.execute('query-named-block-nodes', { arguments: { flat: true }, reply: blockNodesReply }),
      qmp.execute('qom-list', { arguments: { path: '/machine/peripheral' }, reply: qomListReply }),
      qmp.execute('qom-list', {
        arguments: { path: '/machine/peripheral-anon' },
        reply: qomListReply,
      }),
      qmp.execute('query-pci', { reply: pciReply }),
      qmp.execute('query-rx-filter', { reply: rxFilterReply }).catch(() => []),
    ]);
  const cpuTypes = await Promise.all(cpus.map((cpu) => get(cpu['qom-path'], 'type')));
  return {
    status: status.status,
    machineType: machine.replace(/-machine$/, ''),
    machineBackend: machineBackend.split('/').at(-1) ?? '',
    cpuTypes: cpuTypes.map((type) => type.replace(/-x86_64-cpu$/, '')),
    cpuFlags: await readCpuFlags(qmp, cpus[0]?.['qom-path'] ?? ''),
    backends: await Promise.all(memory.map((backend) => readBackend(qmp, backend))),
    nodes,
    devices: [...named, ...anonymous].flatMap(({ name, type }) => {
      const child = /^child<(.+)>$/.exec(type)?.[1];
      return child === undefined ? [] : [{ id: name, type: child }];
    }),
    slots: Object.fromEntries(pci.flatMap((bus) => bus.devices).map((d) => [d.qdev_id, d.slot])),
    macs: Object.fromEntries(filters.map((filter) => [filter.name, filter['main-mac']])),
  };
}

async function readBackend(
  qmp: QmpClient,
  memory: z.infer<typeof memoryBackendsReply>[number],
): Promise<MemoryBackend> {
  const id = memory.id ?? '';
  const path = `/objects/${id}`;
  const type = await qmp.execute('qom-get', {
    arguments: { path, property: 'type' },
    reply: textReply,
  });
  const file =
    type !== 'memory-backend-file'
      ? null
      : await qmp.execute('qom-get', {
          arguments: { path, property: 'mem-path' },
          reply: textReply,
        });
  const system = file === null ? null : await statfs(file).catch(() => null);
  return {
    id,
    type,
    sizeBytes: memory.size,
    share: memory.share,
    path: file,
    hugePages: system?.type === hugetlbfsMagic,
  };
}

/** Properties of a CPU object that are switches of ours, not features a guest can see. */
const notFlags = new RegExp(
  '^(hot|x-|fill-mtrr|full-cpuid|legacy-|host-cache|unavailable|(realized|check|enforce|kvm' +
    '|migratable|memory|start-powered-off|l3-cache|tcg-cpuid|vmware-cpuid-freq|cpuid-0xb|lmce|pmu' +
    '|enable-pmu|crash-information)$)',
);

async function readCpuFlags(qmp: QmpClient, path: string): Promise<readonly string[]> {
  const properties = await qmp.execute('qom-list', { arguments: { path }, reply: qomListReply });
  const flags = properties.filter(({ name, type }) => type === 'bool' && !notFlags.test(name));
  const values = await Promise.all(
    flags.map(({ name }) =>
      qmp.execute('qom-get', { arguments: { path, property: name }, reply: anyProperty }),
    ),
  );
  const on = flags.filter((_, index) => values[index] === true);
  return [...new Set(on.map(({ name }) => canonical(name)))].sort();
}

/** QEMU keeps old spellings with '_' as aliases. */
const canonical = (flag: string): string => flag.replaceAll('_', '-');

/**
 * Flags that a host's QEMU can give a guest under its accelerator, in the same spelling; asked of a
 * VMM that was started with `-machine none` or any other.
 */
export async function readOfferedCpuFlags(qmp: QmpClient): Promise<readonly string[]> {
  const { model } = await qmp.execute('query-cpu-model-expansion', {
    arguments: { type: 'full', model: { name: 'max' } },
    reply: cpuExpansionReply,
  });
  const on = Object.entries(model.props ?? {}).filter(
    ([name, value]) => value === true && !notFlags.test(name),
  );
  return [...new Set(on.map(([name]) => canonical(name)))].sort();
}

/** Who and where the VMM is, which it does not know itself. */
export interface VmmPlace {
  readonly host: HostName;
  readonly incarnation: Incarnation;
  readonly vmmPid: number;
  readonly qemuVersion: string;
  readonly spec: VmSpec;
}

/** The running VM in the contract's form. Pure. */
export function describeRunning(facts: VmmFacts, place: VmmPlace): RunningVm {
  const { spec } = place;
  const backend = facts.backends.find((candidate) => candidate.id === facts.machineBackend);
  return {
    version: 1,
    name: spec.name,
    host: place.host,
    runState: runStateOf(facts.status),
    incarnation: place.incarnation,
    vmmPid: place.vmmPid,
    qemuVersion: place.qemuVersion,
    machineType: facts.machineType,
    cpuModel: facts.cpuTypes[0] ?? '',
    vcpuCount: facts.cpuTypes.length,
    memoryBytes: backend?.sizeBytes ?? 0,
    disks: withVolumes(describeDisks(facts), spec),
    nics: spec.nics.map((nic) => ({
      ...nic,
      macAddress: facts.macs[nicDevice(nic.name)] ?? nic.macAddress,
    })),
    boot: spec.boot,
    failover: spec.failover,
    cpuFlags: facts.cpuFlags,
    exactnessObstacles: obstacles(facts, spec),
    balloon: hasBalloon(facts),
  };
}

/** Disks in the order of their PCI slots, which is the order that the target plugs them in. */
function describeDisks(facts: VmmFacts): readonly RunningDisk[] {
  const nodes = new Map(facts.nodes.map((node) => [node['node-name'], node]));
  const found = facts.nodes.flatMap((node): readonly (RunningDisk & { slot: number })[] => {
    const name = /^disk-([a-z][a-z0-9]*)$/.exec(node['node-name'])?.[1];
    if (name === undefined) return [];
    const file = nodes.get(diskFileNode(name));
    if (node.drv !== 'raw' && node.drv !== 'qcow2') {
      throw new CodedError('preflight/layout', `disk ${name} is ${node.drv}`);
    }
    return [
      {
        name,
        nodeName: diskNode(name),
        format: node.drv,
        sizeBytes: node.image['virtual-size'],
        path: file?.file ?? node.file,
        buffered: file !== undefined && !file.cache.direct,
        slot: facts.slots[diskDevice(name)] ?? 0,
      },
    ];
  });
  return found.sort((a, b) => a.slot - b.slot).map(({ slot: _slot, ...disk }) => disk);
}

/** Which of them are on volume servers; the VMM knows its own socket only. */
function withVolumes(disks: readonly RunningDisk[], spec: VmSpec): readonly RunningDisk[] {
  const volumes = new Map(sharedDisks(spec).map(({ name, volume }) => [name, volume]));
  return disks.map((disk) => {
    const shared = volumes.get(disk.name);
    return shared === undefined ? disk : { ...disk, shared };
  });
}

/** Devices whose DMA or second mapping of guest memory dirty tracking can't see. */
const unseenDevices =
  /^(vfio|vhost-user|vhost-vsock|vhost-scsi|ivshmem|x-pci-proxy|nvme|cxl|intel-iommu)/;
/** Memory besides the one backend: not tracked, not moved. */
const otherMemory = /^(pc-dimm|nvdimm|virtio-mem|virtio-pmem)/;
const ours = /^(virtio-blk-pci|virtio-net-pci)$/;

const hasBalloon = (facts: VmmFacts): boolean =>
  facts.devices.some(({ type }) => type.startsWith('virtio-balloon'));

function obstacles(facts: VmmFacts, spec: VmSpec): readonly string[] {
  const found: string[] = [];
  const backend = facts.backends.find((candidate) => candidate.id === facts.machineBackend);
  if (backend === undefined) found.push('guest memory has no backend object');
  for (const { id, type, share, hugePages } of facts.backends) {
    if (type !== 'memory-backend-file') found.push(`memory ${id} is ${type}, not a named file`);
    if (!share) found.push(`memory ${id} is private to the VMM`);
    if (id !== facts.machineBackend) found.push(`memory ${id} is a second backend`);
    if (hugePages) found.push(`memory ${id} is of huge pages (hugetlbfs), never moved so far`);
  }
  for (const node of facts.nodes) {
    if (node.cache.direct) found.push(`block node ${node['node-name']} uses O_DIRECT`);
    if (node.image['backing-filename'] !== undefined) {
      found.push(`block node ${node['node-name']} has a backing file`);
    }
  }
  for (const { id, type } of facts.devices) {
    if (unseenDevices.test(type)) found.push(`device ${id} (${type}) writes memory unseen`);
    else if (otherMemory.test(type)) found.push(`device ${id} (${type}) is memory of its own`);
    else if (!ours.test(type)) found.push(`device ${id} (${type}) is unknown to the target`);
  }
  return [...found, ...misplaced(facts, spec)];
}

/**
 * The target plugs by index; a device that sits elsewhere would make the device state fail there.
 */
function misplaced(facts: VmmFacts, spec: VmSpec): readonly string[] {
  const expected = [
    ...describeDisks(facts).map(
      (disk, index) => [diskDevice(disk.name), firstDiskSlot + index] as const,
    ),
    ...spec.nics.map((nic, index) => [nicDevice(nic.name), firstNicSlot + index] as const),
  ];
  return expected.flatMap(([id, slot]) =>
    facts.slots[id] === slot
      ? []
      : [`device ${id} sits at slot ${facts.slots[id] ?? '?'}, not ${slot}`],
  );
}

/** The spec that makes an equal VMM elsewhere: what runs, with disks that start empty. Pure. */
export function specOfRunning(running: RunningVm): VmSpec {
  return {
    version: 1,
    name: running.name,
    vcpuCount: running.vcpuCount,
    memoryBytes: running.memoryBytes,
    machineType: running.machineType,
    cpuModel: running.cpuModel,
    disks: running.disks.map(({ name, format, sizeBytes, shared }) => ({
      name,
      format,
      sizeBytes,
      sourceImage: null,
      volume: shared ?? ('local' as const),
    })),
    nics: [...running.nics],
    boot: running.boot,
    failover: running.failover,
  };
}
