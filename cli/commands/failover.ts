/**
 * `novacron failover VM`: starts a VM elsewhere whose host is gone, once that is safe; with
 * `--revert` moves it back there, live, when that host is back.
 */
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { failoverRequest } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { timing } from '../../contracts/limits.ts';
import { outlivesItsHost } from '../../contracts/runner.ts';
import { readHostName } from '../context.ts';
import type { Context } from '../context.ts';
import type { CommandResult } from '../output.ts';
import { migrate } from './migrate.ts';
import { lifecycle, readEntry } from './vm.ts';

interface FailoverOptions {
  readonly to?: string;
  readonly fence?: string;
  readonly revert?: boolean;
  readonly watch?: boolean;
  readonly request?: string;
}

/** Host that the VM had before; failures: host/unknown (none), host/unreachable (still gone). */
async function hostOfBefore(context: Context, { vm, owner, previous }: VmEntry): Promise<string> {
  if (previous === null || previous === owner) {
    throw new CodedError('host/unknown', `${vm} has been on no host but ${owner ?? 'none'}`);
  }
  const hosts = await (await context.backend.ledger()).listHosts();
  const found = hosts.find(({ facts }) => facts.name === previous);
  if (found === undefined) throw new CodedError('host/unknown', `${previous}, where ${vm} was`);
  if (found.silentForMs > timing.failoverSilentMsMin) {
    throw new CodedError('host/unreachable', `${previous}, where ${vm} was, is not heard from yet`);
  }
  return previous;
}

/** What it does not say of the move is the default of `novacron migrate`. */
async function revert(
  context: Context, entry: VmEntry, options: FailoverOptions,
): Promise<CommandResult> {
  if (options.to !== undefined || options.fence !== undefined) {
    throw new CodedError('input/invalid', '--revert goes back: without --to and --fence');
  }
  const { watch, request } = options;
  return migrate(context, entry.vm, {
    to: await hostOfBefore(context, entry),
    ...(watch === undefined ? {} : { watch }), ...(request === undefined ? {} : { request }),
  });
}

async function failover(
  context: Context, name: string, options: FailoverOptions,
): Promise<CommandResult> {
  const entry = await readEntry(context, name);
  if (options.revert === true) return revert(context, entry, options);
  const { vm, epoch, spec, diskHolder } = entry;
  // Said here too, so that nobody waits for a worker to hear it.
  if (!outlivesItsHost(spec)) {
    throw new CodedError('preflight/local-disk', `${vm} waits for ${diskHolder} to come back`);
  }
  return lifecycle(context, {
    step: 'failover',
    input: {
      version: 1, vm, epoch, request: failoverRequest(epoch),
      to: options.to === undefined ? null : readHostName(options.to),
      fenceProof: options.fence ?? null,
    },
  });
}

export function addFailoverCommand(program: Command, context: Context): void {
  context.act(program.command('failover <vm>')
    .description('start a VM on shared volumes on another host, when its own is gone')
    .option('--to <host>', 'its new host; else the emptiest that can take it')
    .option('--fence <how>', 'how you know that the old host runs it no more, e.g. "power is off"; '
      + 'else the end of its lease is waited for')
    .option('--revert', 'move it back, live, to the host that it had before, which is back')
    .option('--watch', 'with --revert: follow the move to its end')
    .option('--request <id>', 'with --revert: id of the move; the same id is the same request'),
  (name: string, options: FailoverOptions) => failover(context, name, options));
}
