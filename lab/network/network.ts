/** Carries a NetworkPlan out in the kernel, shapes its links, and takes it down again. */
import { existsSync, readFileSync } from 'node:fs';
import { runCommand } from '../command.ts';
import type { LabHost, NetworkPlan } from './plan.ts';

/** Set in every namespace: no IPv6 chatter, and buffers that fill a long fat pipe. */
const namespaceSettings: Readonly<Record<string, string>> = {
  'ipv6/conf/all/disable_ipv6': '1',
  'ipv6/conf/default/disable_ipv6': '1',
  'ipv4/tcp_rmem': '4096 131072 67108864',
  'ipv4/tcp_wmem': '4096 65536 67108864',
  'ipv4/tcp_no_metrics_save': '1',
};

/** True when the network namespace exists. */
export const namespaceExists = (namespace: string): boolean =>
  existsSync(`/run/netns/${namespace}`);

async function makeNamespace(namespace: string): Promise<void> {
  if (!namespaceExists(namespace)) await runCommand(['ip', 'netns', 'add', namespace]);
  const settings = Object.entries(namespaceSettings)
    .map(([name, value]) => [`/proc/sys/net/${name}`, value])
    .map(([path, value]) => `[ ! -e ${path} ] || echo '${value}' > ${path}`)
    .join('\n');
  await runCommand(['ip', 'netns', 'exec', namespace, 'sh', '-e'], { input: settings });
}

/**
 * Makes the network. Half-made remains of the same plan are removed first, so that calling it
 * twice, or after a crash, gives the same network.
 */
export async function raiseNetwork(plan: NetworkPlan): Promise<void> {
  await lowerNetwork(plan.namespaces);
  await Promise.all(plan.namespaces.map(makeNamespace));
  await runCommand(['ip', '-batch', '-'], { input: `${plan.cables.join('\n')}\n` });
  for (const [namespace, lines] of plan.inside) {
    await runCommand(['ip', '-n', namespace, '-batch', '-'], { input: `${lines.join('\n')}\n` });
  }
}

/**
 * Removes namespaces and with them every interface, bridge, qdisc and nftables rule inside.
 * Processes must be gone before: a namespace lives on while one of them is in it.
 */
export async function lowerNetwork(namespaces: readonly string[]): Promise<void> {
  for (const namespace of namespaces) {
    if (!namespaceExists(namespace)) continue;
    await runCommand(['ip', 'netns', 'del', namespace]).catch((error: unknown) => {
      // Two may be taking the same lab down: gone is what was wanted.
      if (namespaceExists(namespace)) throw error;
    });
  }
}

/** Pids of the processes inside a namespace; empty when it does not exist. */
export async function processesIn(namespace: string): Promise<number[]> {
  if (!namespaceExists(namespace)) return [];
  const output = await runCommand(['ip', 'netns', 'pids', namespace]);
  return output.split('\n').filter((line) => line !== '').map(Number);
}

/**
 * Caps what a host sends on the migration network by the kernel's token bucket; null lifts it.
 * `burst` holds 10 ms of traffic (at least one 64 KiB segment burst), the queue 50 ms.
 */
export async function limitRate(
  host: LabHost, rateBytesPerSecond: number | null,
): Promise<void> {
  const device = ['dev', host.migrationInterface];
  await runCommand(['tc', '-n', host.namespace, 'qdisc', 'del', ...device, 'root'])
    .catch(() => undefined);
  if (rateBytesPerSecond === null) return;
  const burstBytes = Math.max(131_072, Math.round(rateBytesPerSecond / 100));
  await runCommand([
    'tc', '-n', host.namespace, 'qdisc', 'add', ...device, 'root', 'tbf',
    'rate', `${Math.round(rateBytesPerSecond * 8)}bit`,
    'burst', String(burstBytes), 'latency', '50ms',
  ]);
}

/** Byte counters of an interface, as the kernel keeps them. */
export interface InterfaceBytes {
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

/** Parses /proc/PID/net/dev; null when the interface is not in it. Pure. */
export function parseInterfaceBytes(table: string, device: string): InterfaceBytes | null {
  for (const line of table.split('\n')) {
    const [name, figures] = line.split(':');
    if (name?.trim() !== device || figures === undefined) continue;
    const columns = figures.trim().split(/\s+/).map(Number);
    const [receivedBytes, sentBytes] = [columns[0], columns[8]];
    if (receivedBytes === undefined || sentBytes === undefined) return null;
    return { receivedBytes, sentBytes };
  }
  return null;
}

/**
 * Reads an interface's counters through a process that lives in its namespace: one file read,
 * cheap enough for the edges of a measurement. Null when process or interface is gone.
 */
export function interfaceBytes(pid: number, device: string): InterfaceBytes | null {
  try {
    return parseInterfaceBytes(readFileSync(`/proc/${pid}/net/dev`, 'utf8'), device);
  } catch {
    return null;
  }
}

/** The same by `ip netns exec`, when no process is at hand. */
export async function namespaceBytes(
  namespace: string, device: string,
): Promise<InterfaceBytes | null> {
  const table = await runCommand(['ip', 'netns', 'exec', namespace, 'cat', '/proc/net/dev']);
  return parseInterfaceBytes(table, device);
}
