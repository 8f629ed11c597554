/** `novacron rebalance --plan`: proposes moves that even out the hosts; starts none. */
import type { Command } from 'commander';
import type { HostName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { placementHosts, placementVm, planRebalance } from '../../contracts/placement.ts';
import { readCount } from '../context.ts';
import type { Context } from '../context.ts';
import { exitCodes } from '../exit-codes.ts';
import { table } from '../output.ts';
import type { CommandResult } from '../output.ts';

const moveCountMax = 1_000;
const percent = (part: number): string => `${(part * 100).toFixed(0)} %`;
/** Only what runs and is not on its way already can be proposed. */
const canMove = (entry: VmEntry): entry is VmEntry & { readonly owner: HostName } =>
  entry.phase === 'owned' && entry.owner !== null && entry.desired === 'running';

async function plan(context: Context, options: { readonly limit: string }): Promise<CommandResult> {
  const ledger = await context.backend.ledger();
  const [hosts, entries] = await Promise.all([ledger.listHosts(), ledger.listVms()]);
  const { moves, imbalanceBefore, imbalanceAfter } = planRebalance({
    hosts: placementHosts(hosts, entries), vms: entries.filter(canMove).map(placementVm),
    moveCountMax: readCount({ text: options.limit, option: '--limit', min: 1, max: moveCountMax }),
  });
  return {
    exitCode: exitCodes.ok,
    fields: { moves, imbalanceBefore, imbalanceAfter },
    lines: moves.length === 0
      ? [`nothing to move: used memory differs by ${percent(imbalanceBefore)} between hosts`] : [
        ...table(['VM', 'FROM', 'TO'], moves.map(({ vm, source, target }) => [vm, source, target])),
        `used memory differs by ${percent(imbalanceBefore)} between hosts now, by `
          + `${percent(imbalanceAfter)} after it; nothing was started:`,
        ...moves.map(({ vm, target }) => `  novacron migrate ${vm} --to ${target}`),
      ],
  };
}

export function addRebalanceCommand(program: Command, context: Context): void {
  context.act(program.command('rebalance')
    .description('propose moves that even out the used memory of hosts; starts nothing')
    .requiredOption('--plan', 'print the proposal: nothing else is there yet')
    .option('--limit <count>', 'at most so many moves', '20'),
  (options: { limit: string }) => plan(context, options));
}
