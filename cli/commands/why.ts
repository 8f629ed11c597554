/** `novacron why`: what a VM or a move waits for, on whom, since when, and the next command. */
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { isVmName, parseMigrationId } from '../../contracts/identity.ts';
import type { MigrationId, VmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import type { MoveView } from '../backend.ts';
import { readVmName } from '../context.ts';
import type { Context } from '../context.ts';
import { codedOf } from '../failure-of-error.ts';
import { explainEntry, explainMove, explanationLines, silenceOf } from '../explain.ts';
import type { Explanation, Silence } from '../explain.ts';
import { exitCodes } from '../exit-codes.ts';
import type { CommandResult } from '../output.ts';

/** A side that does not answer is a finding here, not the end. */
async function orSilent<T>(
  answer: Promise<T>, silent: string[],
): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    const { code, detail } = codedOf(error);
    if (code !== 'migration/unknown') silent.push(`${code}: ${detail}`);
    return null;
  }
}

async function viewOf(context: Context, migration: MigrationId): Promise<MoveView> {
  return (await context.backend.workflows()).viewMove(migration);
}

/** The open move of a VM: the ledger names it, or it stands before its reservation. */
function openMoveOf(entry: VmEntry | null): MigrationId | null {
  return entry !== null && (entry.phase === 'preparing' || entry.phase === 'unsettled')
    ? entry.migration : null;
}

async function runningMoveOf(context: Context, vm: VmName): Promise<MigrationId | null> {
  const rows = await (await context.backend.workflows())
    .listMoves({ vm, openOnly: true, countMax: 1 });
  const id = rows[0]?.migration;
  return id !== undefined && parseMigrationId(id) !== null ? id as MigrationId : null;
}

/** Silence of the VM's owner; a ledger that does not answer this is noted once, above. */
async function ownerSilence(
  context: Context, entry: VmEntry | null, silent: string[],
): Promise<Silence | null> {
  if (entry === null) return null;
  const ledger = await orSilent(context.backend.ledger(), silent);
  const hosts = ledger === null ? null : await orSilent(ledger.listHosts(), silent);
  return hosts === null
    ? null : silenceOf({ hosts, host: entry.owner, nowMs: context.world.now() });
}

async function explainVm(context: Context, vm: VmName, silent: string[]): Promise<Explanation> {
  const ledger = await orSilent(context.backend.ledger(), silent);
  const entry = ledger === null ? null : await orSilent(ledger.readVm(vm), silent);
  if (ledger !== null && entry === null && silent.length === 0) {
    throw new CodedError('vm/unknown', vm);
  }
  const silence = await ownerSilence(context, entry, silent);
  const migration = openMoveOf(entry) ?? await orSilent(runningMoveOf(context, vm), silent);
  if (migration !== null) {
    const view = await orSilent(viewOf(context, migration), silent);
    const move = explainMove({ migration, view, entry, end: null, silence,
      silent: silent.length > 0 });
    if (view === null || view.status.outcome === null || openMoveOf(entry) !== null) return move;
  }
  if (entry !== null) return explainEntry(entry, silence);
  return { state: `nothing can be said about ${vm}`, waitsFor: 'the ledger', on: 'the ledger',
    sinceMs: null, because: [], nextCommand: 'novacron doctor' };
}

async function explainMigration(
  context: Context, migration: MigrationId, silent: string[],
): Promise<Explanation> {
  const vm = parseMigrationId(migration)?.vm;
  const view = await orSilent(viewOf(context, migration), silent);
  const ledger = await orSilent(context.backend.ledger(), silent);
  const entry = ledger === null || vm === undefined
    ? null : await orSilent(ledger.readVm(vm), silent);
  const end = ledger === null ? null : await orSilent(ledger.migrationEnd(migration), silent);
  if (view === null && end === null && entry?.migration !== migration && silent.length === 0) {
    throw new CodedError('migration/unknown', migration);
  }
  return explainMove({ migration, view, end, silent: silent.length > 0,
    entry: entry?.migration === migration ? entry : null });
}

async function why(context: Context, text: string): Promise<CommandResult> {
  const silent: string[] = [];
  const isMove = parseMigrationId(text) !== null;
  if (!isMove && !isVmName(text)) readVmName(text);
  const found = isMove ? await explainMigration(context, text as MigrationId, silent)
    : await explainVm(context, readVmName(text), silent);
  const explanation = { ...found, because: [...found.because, ...silent] };
  return {
    exitCode: silent.length === 0 ? exitCodes.ok : exitCodes.unreachable,
    fields: { subject: text, ...explanation },
    lines: explanationLines({ explanation, nowMs: context.world.now() }),
  };
}

export function addWhyCommand(program: Command, context: Context): void {
  context.act(
    program.command('why <vm-or-migration>')
      .description('what it waits for, on whom, since when, and the next command'),
    (text: string) => why(context, text));
}
