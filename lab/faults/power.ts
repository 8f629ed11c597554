/**
 * Power and cables of a host of the lab. Off means: no frame leaves it any more, every process in
 * its namespace is dead and none was left to say how it ended, its memory is gone, and nobody can
 * read its directory until it is on again.
 */
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { runCommand } from '../command.ts';
import { hostStateDirectory, labPorts } from '../compose.ts';
import type { Lab } from '../lab.ts';
import { processesIn } from '../network/network.ts';
import type { LabHost } from '../network/plan.ts';
import { markOf, startTicksOf } from '../state.ts';
import { sendSignal } from '../processes.ts';
import type { CutLink } from './cells.ts';

const offOf = (lab: Lab, host: LabHost): string => `${hostStateDirectory(lab, host)}.off`;

/** The host's ports at the switch: management, VM segment, migration. */
const portsOf = ({ number }: LabHost): string[] =>
  ['m', 'v', 'g'].map((network) => `h${number}-${network}`);

async function setPorts(lab: Lab, host: LabHost, state: 'up' | 'down'): Promise<void> {
  await runCommand(['ip', '-n', lab.plan.switchNamespace, '-batch', '-'], {
    input: portsOf(host).map((port) => `link set ${port} ${state}\n`).join(''),
  });
}

/** Stops all first, so that none sees another one end. */
async function killEverything(host: LabHost): Promise<void> {
  for (let round = 0; round < 50; round += 1) {
    const marks = (await processesIn(host.namespace))
      .filter((pid) => startTicksOf(pid) !== null).map((pid) => markOf('inside', pid));
    if (marks.length === 0) return;
    for (const mark of marks) sendSignal(mark, 'SIGSTOP');
    for (const mark of marks) sendSignal(mark, 'SIGKILL');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Cards of VMs and rules of gates are the kernel's memory: they go with the power. */
async function forgetKernelState(host: LabHost): Promise<void> {
  const links = await runCommand(['ip', '-n', host.namespace, '-j', 'tuntap', 'show'])
    .catch(() => '[]');
  for (const { ifname } of JSON.parse(links === '' ? '[]' : links) as { ifname: string }[]) {
    await runCommand(['ip', '-n', host.namespace, 'link', 'del', ifname]).catch(() => undefined);
  }
  await runCommand(['ip', 'netns', 'exec', host.namespace, 'nft', 'flush', 'ruleset']);
}

/** Cuts the power of a host. */
export async function powerOff(lab: Lab, host: LabHost): Promise<void> {
  await setPorts(lab, host, 'down');
  await killEverything(host);
  renameSync(hostStateDirectory(lab, host), offOf(lab, host));
  const memory = join(lab.directories.memory, host.name);
  if (existsSync(memory)) {
    for (const name of readdirSync(memory)) rmSync(join(memory, name), { recursive: true });
  }
  rmSync(join(lab.directories.runtime, host.name), { recursive: true, force: true });
  await forgetKernelState(host);
}

/** Switches it on again; its runner starts as its system would start it. */
export async function powerOn(lab: Lab, host: LabHost): Promise<void> {
  if (existsSync(offOf(lab, host))) renameSync(offOf(lab, host), hostStateDirectory(lab, host));
  await setPorts(lab, host, 'up');
  await lab.start(lab.started(`host-${host.name}`).spec);
}

const cutTable = 'novacron_cut';

/** Rules that swallow a link's frames at the switch: nobody is told, as with a real cut. Pure. */
export function cutRules(host: Pick<LabHost, 'number'>, link: CutLink): string {
  const port = `h${host.number}-${link === 'data' ? 'g' : 'm'}`;
  const service = link === 'ledger' ? labPorts.ledger : labPorts.temporalFront;
  const rules = link === 'data'
    ? [`iifname "${port}" drop`, `oifname "${port}" drop`]
    : [`iifname "${port}" tcp dport ${service} drop`,
      `oifname "${port}" tcp sport ${service} drop`];
  return [
    `table bridge ${cutTable} {`, ' chain cut {', '  type filter hook forward priority 0;',
    ...rules.map((rule) => `  ${rule}`), ' }', '}', '',
  ].join('\n');
}

/** Cuts one link of a host; the answer mends it. */
export async function cutLink(
  lab: Lab, host: LabHost, link: CutLink,
): Promise<() => Promise<void>> {
  const nft = ['ip', 'netns', 'exec', lab.plan.switchNamespace, 'nft'];
  await runCommand([...nft, '-f', '-'], { input: cutRules(host, link) });
  return async () => {
    await runCommand([...nft, 'delete', 'table', 'bridge', cutTable]);
  };
}
