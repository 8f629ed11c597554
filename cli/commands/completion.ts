/** `novacron completion` and the hidden `names` behind it. */
import { Argument } from 'commander';
import type { Command } from 'commander';
import type { Context } from '../context.ts';
import { completionScript, shells } from '../completion.ts';
import type { Shell } from '../completion.ts';
import { exitCodes } from '../exit-codes.ts';

/** A person presses Tab: more than this is no help. */
const nameCountMax = 200;

async function namesOf(context: Context, kind: string): Promise<string[]> {
  const { backend } = context;
  if (kind === 'vms') return (await (await backend.ledger()).listVms()).map(({ vm }) => vm);
  if (kind === 'hosts') {
    return (await (await backend.ledger()).listHosts()).map(({ facts }) => facts.name);
  }
  return (await (await backend.workflows()).listMoves({ vm: null, openOnly: true,
    countMax: nameCountMax })).map(({ migration }) => migration);
}

export function addCompletionCommands(program: Command, context: Context): void {
  context.act(
    program.command('completion').description(
      'completion script: source <(novacron completion bash)')
      .addArgument(new Argument('<shell>').choices(shells)),
    async (shell: Shell) => {
      const script = completionScript({ program, shell });
      return { exitCode: exitCodes.ok, fields: { shell, script }, lines: script.split('\n') };
    });
  context.act(
    program.command('names', { hidden: true })
      .addArgument(new Argument('<kind>').choices(['vms', 'hosts', 'migrations'])),
    async (kind: string) => {
      const names = (await namesOf(context, kind)).slice(0, nameCountMax);
      return { exitCode: exitCodes.ok, fields: { names }, lines: [names.join(' ')] };
    });
}
