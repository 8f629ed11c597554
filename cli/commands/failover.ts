/** `novacron failover VM`: starts a VM elsewhere whose host is gone, once that is safe. */
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { failoverRequest } from '../../contracts/identity.ts';
import { outlivesItsHost } from '../../contracts/runner.ts';
import { readHostName } from '../context.ts';
import type { Context } from '../context.ts';
import type { CommandResult } from '../output.ts';
import { lifecycle, readEntry } from './vm.ts';

interface FailoverOptions {
  readonly to?: string;
  readonly fence?: string;
}

async function failover(
  context: Context, name: string, options: FailoverOptions,
): Promise<CommandResult> {
  const { vm, epoch, spec, diskHolder } = await readEntry(context, name);
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
      + 'else the end of its lease is waited for'),
  (name: string, options: FailoverOptions) => failover(context, name, options));
}
