/** `novacron vm …`: VMs as the ledger has them, their life cycle, their console. */
import type { Command } from 'commander';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { vmSpec } from '../../contracts/runner.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import { formatBytes } from '../../contracts/units.ts';
import type { LifecycleOutcome } from '../../contracts/vm-lifecycle.ts';
import type { LifecycleRequest } from '../../payloads/lifecycle-client.ts';
import { readDurationMs, readHostName, readRequestId, readVmName } from '../context.ts';
import type { Context } from '../context.ts';
import { explainEntry, explanationLines, silenceOf } from '../explain.ts';
import { exitCodeOfFailure, exitCodes } from '../exit-codes.ts';
import { failureLines, table } from '../output.ts';
import type { CommandResult } from '../output.ts';
import { vmState } from '../vm-state.ts';

async function list(context: Context): Promise<CommandResult> {
  const ledger = await context.backend.ledger();
  const [all, hosts] = await Promise.all([ledger.listVms(), ledger.listHosts()]);
  const nowMs = context.world.now();
  const state = (entry: VmEntry): string =>
    vmState(entry, silenceOf({ hosts, host: entry.owner, nowMs }));
  const entries = all
    .filter(({ phase }) => phase !== 'absent')
    .toSorted((a, b) => a.vm.localeCompare(b.vm));
  return {
    exitCode: exitCodes.ok,
    fields: { vms: entries.map((entry) => ({ vm: entry.vm, state: state(entry),
      host: entry.owner, target: entry.target, epoch: entry.epoch, migration: entry.migration,
      vcpuCount: entry.spec.vcpuCount, memoryBytes: entry.spec.memoryBytes })) },
    lines: entries.length === 0 ? ['no VMs; make one with `novacron vm create`'] : table(
      ['VM', 'STATE', 'HOST', 'VCPUS', 'MEMORY', 'EPOCH'],
      entries.map((entry) => [entry.vm, state(entry), entry.owner ?? '-',
        String(entry.spec.vcpuCount), formatBytes(entry.spec.memoryBytes), String(entry.epoch)])),
  };
}

export async function readEntry(context: Context, text: string): Promise<VmEntry> {
  const vm = readVmName(text);
  const entry = await (await context.backend.ledger()).readVm(vm);
  if (entry === null || entry.phase === 'absent') throw new CodedError('vm/unknown', vm);
  return entry;
}

async function show(context: Context, text: string): Promise<CommandResult> {
  const entry = await readEntry(context, text);
  const { spec } = entry;
  const hosts = await (await context.backend.ledger()).listHosts();
  const silence = silenceOf({ hosts, host: entry.owner, nowMs: context.world.now() });
  const explanation = explainEntry(entry, silence);
  return {
    exitCode: exitCodes.ok,
    fields: {
      vm: entry.vm, state: vmState(entry, silence), entry,
      hostSilentSinceMs: silence?.sinceMs ?? null,
    },
    lines: [
      ...(silence === null ? [explanation.state]
        : explanationLines({ explanation, nowMs: context.world.now() })),
      `  ${spec.vcpuCount} vCPUs, ${formatBytes(spec.memoryBytes)}, ${spec.machineType}, `
        + `${spec.cpuModel}, failover ${spec.failover}`,
      ...spec.disks.map((disk) => `  disk ${disk.name}: ${disk.format}, `
        + `${formatBytes(disk.sizeBytes)}, on ${disk.volume === 'local' ? entry.diskHolder
          : `volume ${disk.volume.name} at ${disk.volume.server.name}`}`),
      ...spec.nics.map((nic) => `  nic ${nic.name}: ${nic.address} ${nic.macAddress} `
        + `on ${nic.segment}`),
      ...(entry.migration === null ? [] : [`  last or open move: ${entry.migration}`]),
      ...(silence === null ? [`  last entry: ${entry.cause}`] : []),
    ],
  };
}

async function readSpec(context: Context, path: string): Promise<VmSpec> {
  const { world } = context;
  const text = await world.readTextFile(path).catch((error: unknown) => {
    throw new CodedError('input/invalid', `${path}: ${(error as Error).message}`, error);
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CodedError('input/invalid', `${path}: not JSON: ${(error as Error).message}`, error);
  }
  const parsed = vmSpec.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map((issue: z.core.$ZodIssue) =>
    `${issue.path.join('.') || 'the file'}: ${issue.message}`);
  throw new CodedError('input/invalid', `${path}: ${problems.join('; ')}`);
}

function lifecycleResult(
  { step, workflowId, workflowUrl, outcome }: {
    step: string; workflowId: string; workflowUrl: string | null; outcome: LifecycleOutcome;
  },
): CommandResult {
  const fields = { workflowId, workflowUrl, step, ...outcome };
  switch (outcome.kind) {
    case 'completed':
      return { exitCode: exitCodes.ok, fields, lines: [
        step === 'delete' ? `${outcome.vm} is deleted`
          : `${outcome.vm} is ${outcome.runState} on ${outcome.host ?? '?'}, `
            + `epoch ${outcome.epoch}`] };
    case 'cancelled':
      return { exitCode: exitCodes.cancelled, fields,
        lines: [`${step} of ${outcome.vm} was cancelled`] };
    case 'failed':
      return { exitCode: exitCodeOfFailure(outcome.failure.code), fields,
        lines: [...failureLines(outcome.failure),
          ...outcome.compensationFailures.map(
            ({ code, detail }) => `  left behind: ${code}: ${detail}`)] };
  }
}

/** Starts or joins a request of the life cycle and waits for its outcome. */
export async function lifecycle(
  context: Context, request: LifecycleRequest,
): Promise<CommandResult> {
  const workflows = await context.backend.workflows();
  context.world.stderr.write(
    `${request.step}: waiting for the workers; Ctrl-C leaves it running\n`);
  const { workflowId, outcome } = await workflows.runLifecycle(request);
  const workflowUrl = workflows.workflowUrl({ workflowId, runId: null });
  return lifecycleResult({ step: request.step, workflowId, workflowUrl, outcome });
}

async function create(context: Context, options: {
  readonly spec: string; readonly host: string; readonly start: boolean; readonly request?: string;
}): Promise<CommandResult> {
  const { world } = context;
  const host = readHostName(options.host);
  const spec = await readSpec(context, options.spec);
  const request = readRequestId({ text: options.request, world });
  return lifecycle(context, { step: 'create',
    input: { version: 1, spec, host, request, start: options.start } });
}

async function remove(
  context: Context, text: string, options: { readonly yes?: boolean; readonly request?: string },
): Promise<CommandResult> {
  const vm = readVmName(text);
  if (options.yes !== true) {
    throw new CodedError('input/invalid', `this deletes the disks of ${vm}; say so with --yes`);
  }
  const request = readRequestId({ text: options.request, world: context.world });
  return lifecycle(context, { step: 'delete', input: { version: 1, vm, request } });
}

async function resolve(
  context: Context, text: string,
  options: { readonly accept?: boolean; readonly cold?: boolean; readonly request?: string },
): Promise<CommandResult> {
  const vm = readVmName(text);
  if ((options.accept === true) === (options.cold === true)) {
    throw new CodedError('input/invalid', `say what becomes of ${vm}: --accept or --cold`);
  }
  const request = readRequestId({ text: options.request, world: context.world });
  const choice = options.cold === true ? 'cold' : 'accept';
  return lifecycle(context, { step: 'resolve', input: { version: 1, vm, request, choice } });
}

async function console(context: Context, text: string): Promise<CommandResult> {
  const entry = await readEntry(context, text);
  const host = entry.owner;
  const { hosts } = await context.backend.config();
  const socketPath = host === null ? undefined : hosts[host]?.localSocket;
  if (host === null || socketPath === undefined) {
    throw new CodedError('vm/not-running', `the console of ${entry.vm} is on ${host ?? 'no host'}: `
      + `run \`novacron-host console ${entry.vm}\` there`);
  }
  context.world.stderr.write(`console of ${entry.vm} on ${host}; Ctrl-] leaves it\n`);
  const why = await context.world.joinConsole({ socketPath, vm: entry.vm });
  return { exitCode: exitCodes.ok, fields: { vm: entry.vm, host, ended: why },
    lines: [why === 'vm-ended' ? 'the console was closed by the host' : 'left'] };
}

export function addVmCommands(program: Command, context: Context): void {
  const { act, world } = context;
  const vm = program.command('vm').description('VMs and their life cycle');
  const requestOption = ['--request <id>',
    'id of this request; the same id is the same request'] as const;
  act(vm.command('list').description('all VMs, with owner and state'), () => list(context));
  act(vm.command('show <vm>').description('one VM: owner, state, spec'),
    (name: string) => show(context, name));
  act(vm.command('create').description('make a VM from a spec file (JSON) on a host')
    .requiredOption('--spec <file>', 'spec of the VM, see docs/guides/vm-spec.md')
    .requiredOption('--host <host>', 'its first owner')
    .option('--no-start', 'leave it stopped').option(...requestOption),
  (options: { spec: string; host: string; start: boolean; request?: string }) =>
    create(context, options));
  act(vm.command('start <vm>').description('boot it on its owner').option(...requestOption),
    async (name: string, options: { request?: string }) => lifecycle(context, { step: 'start',
      input: { version: 1, vm: readVmName(name),
        request: readRequestId({ text: options.request, world }) } }));
  act(vm.command('stop <vm>').description('shut it down')
    .option('--grace <time>', 'time for the guest to shut down; 0 ends it at once', '60s')
    .option(...requestOption),
  async (name: string, options: { grace: string; request?: string }) =>
    lifecycle(context, { step: 'stop', input: { version: 1, vm: readVmName(name),
      request: readRequestId({ text: options.request, world }),
      graceMs: readDurationMs({ text: options.grace, option: '--grace', bareUnit: 's' }) } }));
  act(vm.command('delete <vm>').description('delete it with its disks')
    .option('--yes', 'yes, delete the disks').option(...requestOption),
  (name: string, options: { yes?: boolean; request?: string }) => remove(context, name, options));
  act(vm.command('resolve <vm>')
    .description('decide about a VM that a move left damaged; its source image goes then')
    .option('--accept', 'it goes on with its memory as it is')
    .option('--cold', 'it boots from its disk').option(...requestOption),
  (name: string, options: { accept?: boolean; cold?: boolean; request?: string }) =>
    resolve(context, name, options));
  act(vm.command('console <vm>').description('serial console, on the machine of its host'),
    (name: string) => console(context, name));
}
