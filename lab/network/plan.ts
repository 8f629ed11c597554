/**
 * The picture of a lab's network as data: names, addresses, and the `ip` commands that make it.
 * Decides nothing about processes; network.ts carries the plan out.
 *
 *            switch namespace: br-mgmt          br-vm            br-mig
 *   control ────────────────────┘ │               │                │
 *   storage ──────────────────────┤               │                │
 *   client ───────────────────────┼───────────────┤                │
 *   host n ──── mgmt0 ────────────┘  br-vm ─ up0 ─┘    mig0 ───────┘
 */
import { randomBytes } from 'node:crypto';

/** A lab's name: `nc` and four hex digits; it prefixes everything that the kernel keeps for it. */
export const labIdPattern = /^nc[0-9a-f]{4}$/;
/** A fresh lab id. */
export const newLabId = (): string => `nc${randomBytes(2).toString('hex')}`;

/** Last octets 11 to 60 are hosts; more runners than this don't fit one machine anyway. */
export const hostCountMax = 50;

/** Where the three networks of every lab are; they exist in its own namespaces only. */
export const labNetworks = {
  management: '198.18.0',
  vmSegment: '198.18.1',
  migration: '198.18.2',
  prefixLength: 24,
} as const;

/** Address of the control namespace on the management network. */
export const controlAddress = `${labNetworks.management}.1`;
/** Address of the volume server's namespace on the management network. */
export const storageAddress = `${labNetworks.management}.3`;
/** Address of the outside client on the VM segment. */
export const clientAddress = `${labNetworks.vmSegment}.2`;
/** Bridge inside each host that its VMs' taps join. */
export const vmBridge = 'br-vm';

/** Names and addresses of one host of the lab. */
export interface LabHost {
  /** 1, 2, …: its place in the lab. */
  readonly number: number;
  /** Host name in the ledger. */
  readonly name: string;
  readonly namespace: string;
  readonly managementAddress: string;
  readonly migrationAddress: string;
  /** Interface of the migration network, whose byte counters are "the wire". */
  readonly migrationInterface: string;
}

/** A whole lab network as data. */
export interface NetworkPlan {
  readonly id: string;
  readonly switchNamespace: string;
  readonly controlNamespace: string;
  readonly clientNamespace: string;
  /** Where volume servers run. */
  readonly storageNamespace: string;
  readonly hosts: readonly LabHost[];
  /** Every namespace, in the order in which they are made. */
  readonly namespaces: readonly string[];
  /** Lines for one `ip -batch -` outside of every namespace: the cables. */
  readonly cables: readonly string[];
  /** Lines for `ip -n NAMESPACE -batch -`. */
  readonly inside: ReadonlyMap<string, readonly string[]>;
}

const mac = (kind: number, number: number): string =>
  `02:4e:43:00:0${kind}:${number.toString(16).padStart(2, '0')}`;

/** No spanning tree and no forward delay: a moved VM's frames must pass at once. */
const bridgeLines = (name: string): string[] => [
  `link add ${name} type bridge stp_state 0 forward_delay 0 ageing_time 30000 mcast_snooping 0`,
  `link set ${name} up`,
];

const portLines = (port: string, bridge: string): string[] => [
  `link set ${port} master ${bridge}`,
  `link set ${port} up`,
];

const addressLines = (device: string, address: string): string[] => [
  `addr add ${address}/${labNetworks.prefixLength} dev ${device}`,
  `link set ${device} up`,
];

function labHost(id: string, number: number): LabHost {
  return {
    number,
    name: `h${number}`,
    namespace: `${id}-h${number}`,
    managementAddress: `${labNetworks.management}.${10 + number}`,
    migrationAddress: `${labNetworks.migration}.${10 + number}`,
    migrationInterface: 'mig0',
  };
}

/** Draws the network of lab `id` with `hostCount` hosts (1 to 50). Pure. */
export function planNetwork(options: {
  readonly id: string; readonly hostCount: number;
}): NetworkPlan {
  const { id, hostCount } = options;
  if (!labIdPattern.test(id)) throw new RangeError(`lab id ${id} is not nc and 4 hex digits`);
  if (!Number.isInteger(hostCount) || hostCount < 1 || hostCount > hostCountMax) {
    throw new RangeError(`a lab has 1 to ${hostCountMax} hosts, not ${hostCount}`);
  }
  const hosts = Array.from({ length: hostCount }, (_, index) => labHost(id, index + 1));
  const switchNamespace = `${id}-sw`;
  const controlNamespace = `${id}-ctl`;
  const clientNamespace = `${id}-cl`;
  const storageNamespace = `${id}-st`;
  const cable = (device: string, namespace: string, port: string, address: string): string =>
    `link add ${device} netns ${namespace} address ${address} type veth `
    + `peer name ${port} netns ${switchNamespace}`;
  const cables = [
    cable('mgmt0', controlNamespace, 'ctl-m', mac(1, 1)),
    cable('vm0', clientNamespace, 'cl-v', mac(2, 2)),
    cable('mgmt0', storageNamespace, 'st-m', mac(1, 3)),
    ...hosts.flatMap(({ number, namespace }) => [
      cable('mgmt0', namespace, `h${number}-m`, mac(1, 10 + number)),
      cable('up0', namespace, `h${number}-v`, mac(2, 10 + number)),
      cable('mig0', namespace, `h${number}-g`, mac(3, 10 + number)),
    ]),
  ];
  const inside = new Map<string, readonly string[]>();
  inside.set(switchNamespace, [
    'link set lo up',
    ...['br-mgmt', vmBridge, 'br-mig'].flatMap(bridgeLines),
    ...portLines('ctl-m', 'br-mgmt'),
    ...portLines('cl-v', vmBridge),
    ...portLines('st-m', 'br-mgmt'),
    ...hosts.flatMap(({ number }) => [
      ...portLines(`h${number}-m`, 'br-mgmt'),
      ...portLines(`h${number}-v`, vmBridge),
      ...portLines(`h${number}-g`, 'br-mig'),
    ]),
  ]);
  inside.set(controlNamespace, ['link set lo up', ...addressLines('mgmt0', controlAddress)]);
  inside.set(clientNamespace, ['link set lo up', ...addressLines('vm0', clientAddress)]);
  inside.set(storageNamespace, ['link set lo up', ...addressLines('mgmt0', storageAddress)]);
  for (const host of hosts) {
    inside.set(host.namespace, [
      'link set lo up',
      ...addressLines('mgmt0', host.managementAddress),
      ...addressLines('mig0', host.migrationAddress),
      ...bridgeLines(vmBridge),
      ...portLines('up0', vmBridge),
    ]);
  }
  return {
    id, switchNamespace, controlNamespace, clientNamespace, storageNamespace, hosts, cables,
    inside,
    namespaces: [
      switchNamespace, controlNamespace, clientNamespace, storageNamespace,
      ...hosts.map((host) => host.namespace),
    ],
  };
}
