/** `novacron host …`: hosts as the ledger has them, cordons, and the joining of a new machine. */
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { timing } from '../../contracts/limits.ts';
import type { HostView, VmEntry } from '../../contracts/ownership.ts';
import { formatBytes } from '../../contracts/units.ts';
import { enrolHost } from '../../payloads/enrolment.ts';
import { readHostName } from '../context.ts';
import type { Context } from '../context.ts';
import { exitCodes } from '../exit-codes.ts';
import { formatMillis } from '../progress.ts';
import { table } from '../output.ts';
import type { CommandResult } from '../output.ts';
import { addEvacuateCommands } from './evacuation.ts';
import { waitingVms } from '../vm-state.ts';

const isSilent = ({ silentForMs }: HostView): boolean => silentForMs > timing.hostSilentMsMax;
const stateOf = (host: HostView): string =>
  `${host.cordoned ? 'cordoned' : 'open'}${isSilent(host) ? ', silent' : ''}`;

async function list(context: Context): Promise<CommandResult> {
  const ledger = await context.backend.ledger();
  const [found, vms] = await Promise.all([ledger.listHosts(), ledger.listVms()]);
  // The ledger has them in the order in which they joined, which says nothing.
  const hosts = found.toSorted((a, b) => (a.facts.name < b.facts.name ? -1 : 1));
  const vmsOf = (host: string): readonly VmEntry[] => vms.filter(({ owner }) => owner === host);
  const startingOf = (host: string): readonly string[] =>
    waitingVms(vmsOf(host)).map(({ vm }) => vm);
  const countOf = (host: string): string => {
    const starting = startingOf(host).length;
    return `${vmsOf(host).length}${starting === 0 ? '' : ` (${starting} starting)`}`;
  };
  return {
    exitCode: exitCodes.ok,
    fields: { hosts: hosts.map(({ facts, cordoned, joinedAtMs, silentForMs }) => ({
      host: facts.name, cordoned, joinedAtMs, silentForMs, vmCount: vmsOf(facts.name).length,
      vmsStarting: startingOf(facts.name),
      accelerator: facts.accelerator, qemuVersion: facts.qemuVersion,
      memoryBytes: facts.memoryBytes })) },
    lines: hosts.length === 0 ? ['no hosts; see `novacron cert join-token`'] : table(
      ['HOST', 'STATE', 'VMS', 'MEMORY', 'QEMU', 'ACCEL', 'KERNEL', 'ADDRESS'],
      hosts.map((host) => [host.facts.name, stateOf(host),
        countOf(host.facts.name), formatBytes(host.facts.memoryBytes),
        host.facts.qemuVersion, host.facts.accelerator, host.facts.kernelRelease,
        host.facts.migrationAddress])),
  };
}

async function findHost(context: Context, text: string): Promise<HostView> {
  const host = readHostName(text);
  const found = (await (await context.backend.ledger()).listHosts())
    .find(({ facts }) => facts.name === host);
  if (found === undefined) throw new CodedError('host/unknown', host);
  return found;
}

async function show(context: Context, text: string): Promise<CommandResult> {
  const host = await findHost(context, text);
  const { facts, cordoned, joinedAtMs, silentForMs } = host;
  const vms = (await (await context.backend.ledger()).listVms())
    .filter(({ owner }) => owner === facts.name);
  const starting = waitingVms(vms);
  const named = vms.map((entry) =>
    (starting.includes(entry) ? `${entry.vm} (starting)` : entry.vm));
  return {
    exitCode: exitCodes.ok,
    fields: { host: facts.name, cordoned, joinedAtMs, silentForMs, facts,
      vms: vms.map(({ vm }) => vm), vmsStarting: starting.map(({ vm }) => vm) },
    lines: [
      `${facts.name}: ${cordoned ? 'cordoned (takes no new VMs)' : 'open'}, `
        + `joined ${new Date(joinedAtMs).toISOString()}`,
      ...(isSilent(host)
        ? [`  its runner has not been heard from for ${formatMillis(silentForMs)}; its VMs wait `
          + 'for it: their disks are there. On the host: systemctl status novacron-runner'] : []),
      `  ${formatBytes(facts.memoryBytes)} memory, ${formatBytes(facts.diskFreeBytes)} disk free, `
        + `QEMU ${facts.qemuVersion}, ${facts.accelerator}, Linux ${facts.kernelRelease}`,
      `  moves at ${facts.migrationAddress}: control ${facts.peerPort}, lanes ${facts.lanePort}`,
      `  segments: ${facts.segments.join(', ') || 'none'}`,
      `  features: ${facts.features.join(', ') || 'none'}`,
      `  VMs: ${named.join(', ') || 'none'}`,
    ],
  };
}

async function cordon(
  { context, text, cordoned }: { context: Context; text: string; cordoned: boolean },
): Promise<CommandResult> {
  const { facts } = await findHost(context, text);
  const host = readHostName(facts.name);
  const [verdict] = await (await context.backend.ledger())
    .propose([{ kind: 'cordon-host', host, cordoned }]);
  if (verdict === undefined) throw new CodedError('ownership/unreachable', 'no verdict came');
  if (!verdict.accepted) throw new CodedError(verdict.code, verdict.reason);
  return {
    exitCode: exitCodes.ok,
    fields: { host, cordoned, changed: verdict.changed },
    lines: [`${host} ${cordoned ? 'takes no new VMs' : 'takes VMs again'}`],
  };
}

async function joinHost(
  context: Context, options: { readonly token: string; readonly out: string },
): Promise<CommandResult> {
  const outDir = resolve(context.world.workingDirectory, options.out);
  const token = options.token === '-'
    ? (await context.world.readTextFile('/dev/stdin')).trim() : options.token;
  const files = await enrolHost({ token, outDir });
  const { certPath, keyPath, caPath, revokedPath, host, serial, notAfterMs } = files;
  return {
    exitCode: exitCodes.ok,
    fields: { host, serial, notAfterMs, tls: { certPath, keyPath, caPath }, revokedPath },
    lines: [
      `${host} has its certificate (serial ${serial}, until ${new Date(notAfterMs).toISOString()})`,
      `  ${certPath}`, `  ${keyPath}`, `  ${caPath}`, `  ${revokedPath}`,
      '  name them in the configuration of its runner and start it; it joins the ledger by itself:',
      `  see docs/guides/real-hosts.md, then \`novacron host show ${host}\``,
    ],
  };
}

export function addHostCommands(program: Command, context: Context): void {
  const { act } = context;
  const host = program.command('host').description('hosts: list, cordon, drain, join');
  act(host.command('list').description('all hosts'), () => list(context));
  act(host.command('show <host>').description('one host: what it has and what it runs'),
    (name: string) => show(context, name));
  act(host.command('cordon <host>').description('let it take no new VMs; what runs there stays'),
    (name: string) => cordon({ context, text: name, cordoned: true }));
  act(host.command('uncordon <host>').description('let it take VMs again'),
    (name: string) => cordon({ context, text: name, cordoned: false }));
  addEvacuateCommands(host, context);
  act(host.command('join').description('on a new machine: get its certificate with a join token')
    .requiredOption('--token <token>',
      'from `novacron cert join-token`; - reads it from stdin, unseen by ps')
    .option('--out <dir>', 'where the files go', join('/etc', 'novacron', 'tls')),
  (options: { token: string; out: string }) => joinHost(context, options));
}
