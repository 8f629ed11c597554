#!/usr/bin/env node
/**
 * `novacron-host`: looks at and stops VMs on this very host through the runner's local socket, with
 * Temporal away. Exit codes: 0 ok, 1 internal, 2 usage, 3 refused, 6 the runner does not answer.
 */
import { join } from 'node:path';
import { Command, CommanderError, Option } from 'commander';
import { CodedError, failureReport, readFailure } from '../../contracts/failures.ts';
import { isVmName } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import { formatBytes } from '../../contracts/units.ts';
import { askHost, attachConsole } from '../../payloads/host-socket.ts';

/** Where the systemd unit puts the runtime directory. */
const defaultSocket = '/run/novacron/host.sock';
/** Name of the socket inside a runner's runtimeDir. */
export const localSocketName = 'host.sock';
export const localSocketPath = (runtimeDir: string): string => join(runtimeDir, localSocketName);

interface Options {
  readonly socket: string;
  readonly json?: boolean;
}

function checkedVm(text: string): VmName {
  if (isVmName(text)) return text;
  throw new CodedError('input/invalid',
    `${JSON.stringify(text.slice(0, 80))}: a VM name is 1 to 40 of a-z, 0-9 and '-'`);
}

function printJson(command: string, fields: object): void {
  process.stdout.write(
    `${JSON.stringify({ version: 1, command, ok: true, exitCode: 0, ...fields })}\n`);
}

async function list({ socket, json }: Options): Promise<void> {
  const { vms } = await askHost({ socketPath: socket, request: { version: 1, op: 'list' } });
  if (json === true) return printJson('list', { vms });
  if (vms.length === 0) process.stdout.write('no VMs here\n');
  for (const { name, runState, vmmPid, vcpuCount, memoryBytes } of vms) {
    process.stdout.write(`${name}  ${runState}  ${vcpuCount} vCPU  ${formatBytes(memoryBytes)}`
      + `  pid ${vmmPid ?? '-'}\n`);
  }
}

async function status({ socket, json }: Options): Promise<void> {
  const answer = await askHost({ socketPath: socket, request: { version: 1, op: 'status' } });
  if (json === true) return printJson('status', answer.status);
  const { host, pid, startedAtMs, checks, openMigrations } = answer.status;
  process.stdout.write(
    `runner of ${host}, pid ${pid}, since ${new Date(startedAtMs).toISOString()}\n`);
  for (const [check, result] of Object.entries(checks)) {
    process.stdout.write(`  ${check}: ${result}\n`);
  }
  for (const migration of openMigrations) process.stdout.write(`  open: ${migration}\n`);
}

async function stop(
  vm: string, { socket, json, grace }: Options & { grace: string },
): Promise<void> {
  const graceMs = Math.round(Number(grace) * 1_000);
  if (!Number.isFinite(graceMs) || graceMs < 0) {
    throw new CodedError('input/invalid', `--grace ${grace}: write seconds, 0 or more`);
  }
  const { runState } = await askHost(
    { socketPath: socket, request: { version: 1, op: 'stop', vm: checkedVm(vm), graceMs } });
  if (json === true) return printJson('stop', { vm, runState });
  process.stdout.write(`${vm}: ${runState}\n`);
}

async function attach(vm: string, { socket }: Options): Promise<void> {
  const { stdin, stdout, stderr } = process;
  const vmName = checkedVm(vm);
  stderr.write(`console of ${vm}; Ctrl-] leaves it\n`);
  if (stdin.isTTY) stdin.setRawMode(true);
  try {
    const why = await attachConsole({ socketPath: socket, vmName, input: stdin, output: stdout });
    stderr.write(`\r\n${why === 'vm-ended' ? 'the console was closed by the host' : 'left'}\r\n`);
  } finally {
    if (stdin.isTTY) stdin.setRawMode(false);
    stdin.pause();
  }
}

/** The command tree, for the reference. */
export function hostProgram(): Command {
  const program = new Command('novacron-host')
    .description('Looks at and stops VMs on this host, with Temporal away.')
    .addOption(new Option('--socket <path>', 'local socket of the runner')
      .default(defaultSocket).env('NOVACRON_HOST_SOCKET'))
    .option('--json', 'last line on stdout is one JSON object');
  const options = (): Options => program.opts();
  program.command('list').description('VMs on this host').action(() => list(options()));
  program.command('status').description('the runner, its checks and open moves')
    .action(() => status(options()));
  program.command('stop <vm>').description('power button, then the end of its VMM')
    .option('--grace <seconds>', 'time for the guest to shut down', '60')
    .action((vm: string, own: { grace: string }) => stop(vm, { ...options(), ...own }));
  program.command('console <vm>').description('serial console of a VM; Ctrl-] leaves it')
    .action((vm: string) => attach(vm, options()));
  return program;
}

function exitCodeOf(code: string): number {
  if (code === 'internal') return 1;
  if (code.startsWith('input/')) return 2;
  return code.endsWith('/unreachable') ? 6 : 3;
}

/** Runs the program and answers the exit code; errors are told in text or JSON. */
export async function runHostCommand(argv: readonly string[]): Promise<number> {
  const program = hostProgram().exitOverride();
  for (const command of program.commands) command.exitOverride();
  const json = argv.includes('--json');
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0;
      if (json) {
        const failure = failureReport('input/invalid', error.message.replace(/^error: /, ''));
        process.stdout.write(
          `${JSON.stringify({ version: 1, ok: false, exitCode: 2, failure })}\n`);
      }
      return 2;
    }
    const failure = readFailure(error)
      ?? failureReport('internal', error instanceof Error ? error.message : String(error));
    const exitCode = exitCodeOf(failure.code);
    if (json) {
      process.stdout.write(`${JSON.stringify({ version: 1, ok: false, exitCode, failure })}\n`);
    } else {
      process.stderr.write(`novacron-host: ${failure.message} (${failure.code})\n`
        + `  where: ${failure.detail}\n  what to do: ${failure.remedy}\n`);
    }
    return exitCode;
  }
}

if (import.meta.main) {
  process.exitCode = await runHostCommand(process.argv.slice(2));
}
