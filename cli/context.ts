/**
 * What every command gets: the world outside (streams, time, backend) as arguments, and the shared
 * readings of words a person typed. Commands answer a CommandResult and print nothing themselves.
 */
import type { Command } from 'commander';
import { CodedError } from '../contracts/failures.ts';
import { isHostName, isRequestId, isVmName, parseMigrationId } from '../contracts/identity.ts';
import type { HostName, MigrationId, RequestId, VmName } from '../contracts/identity.ts';
import { parseBytes } from '../contracts/units.ts';
import type { Backend } from './backend.ts';
import type { ConfigPlaces } from './operator-config.ts';
import type { CommandResult, TextSink } from './output.ts';

/** Everything outside the command line; tests hand in their own. */
export interface World {
  readonly stdout: TextSink;
  readonly stderr: TextSink;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly workingDirectory: string;
  readonly projectDirectory: string;
  readonly now: () => number;
  readonly sleep: (ms: number) => Promise<void>;
  /** Six hex digits or so: makes request ids that nobody chose unique. */
  readonly randomText: () => string;
  /** Resolves at Ctrl-C. */
  readonly interrupted: Promise<void>;
  readonly openBackend: (places: ConfigPlaces) => Backend;
  readonly readTextFile: (path: string) => Promise<string>;
  /** Runs a program of the project with our streams; answers its exit code. */
  readonly runProgram: (input: {
    readonly script: string; readonly argv: readonly string[];
  }) => Promise<number>;
  /** Joins the terminal with a VM's console until it ends. */
  readonly joinConsole: (input: { readonly socketPath: string; readonly vm: VmName }) =>
    Promise<'escape' | 'vm-ended' | 'input-ended'>;
}

export interface Context {
  readonly world: World;
  readonly backend: Backend;
  /** True with --json: nothing but the last line may go to stdout. */
  readonly json: () => boolean;
  /** Registers the action of a command; its result is printed when it is there. */
  readonly act: <Args extends unknown[]>(
    command: Command, action: (...args: Args) => Promise<CommandResult>,
  ) => Command;
}

const quoted = (text: string): string => JSON.stringify(text.slice(0, 80));
const invalid = (text: string, what: string): CodedError =>
  new CodedError('input/invalid', `${quoted(text)}: ${what}`);

/** A VM's name as typed. */
export function readVmName(text: string): VmName {
  if (isVmName(text)) return text;
  throw invalid(text, "a VM name is 1 to 40 of a-z, 0-9 and '-', starting with a letter");
}

/** A host's name as typed. */
export function readHostName(text: string): HostName {
  if (isHostName(text)) return text;
  throw invalid(text, "a host name is 1 to 30 of a-z, 0-9 and '-', starting with a letter");
}

/** A request id as typed, or one made of the time. */
export function readRequestId(
  { text, world }: { readonly text: string | undefined; readonly world: World },
): RequestId {
  const time = new Date(world.now()).toISOString().replace(/[-:]|\.\d+Z/g, '');
  const made = `${time}-${world.randomText()}`;
  const id = text ?? made;
  if (isRequestId(id)) return id;
  throw invalid(id, "a request id is 1 to 64 of A-Z a-z 0-9 '.' '_' '-', starting with no sign");
}

/** "500ms", "90s", "10m", "2h" or a bare number of `bareUnit`; answers whole milliseconds. */
export function readDurationMs(
  { text, option, bareUnit }: {
    readonly text: string; readonly option: string; readonly bareUnit: 'ms' | 's';
  },
): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text);
  const factors = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 } as const;
  if (match?.[1] === undefined) {
    throw invalid(text, `${option} takes a time like 500ms, 90s, 10m or 2h`);
  }
  return Math.round(Number(match[1]) * factors[(match[2] ?? bareUnit) as keyof typeof factors]);
}

/** "100MB", "12.5MiB/s", "0" or "none". */
export function readBandwidth(text: string): number {
  if (text === 'none') return 0;
  try {
    return parseBytes(text.replace(/\/s$/, ''));
  } catch {
    throw invalid(text, 'write a rate like 100MB, 12.5MiB/s, or none');
  }
}

/** A whole number within bounds. */
export function readCount(
  { text, option, min, max }: {
    readonly text: string; readonly option: string; readonly min: number; readonly max: number;
  },
): number {
  const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  throw invalid(text, `${option} takes a whole number from ${min} to ${max}`);
}

/** "198.18.0.2:7420" or "[::1]:7420". */
export function readEndpoint(
  { text, option }: { readonly text: string; readonly option: string },
): { readonly address: string; readonly port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})$/.exec(text);
  const address = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (address !== undefined && port <= 65_535) return { address, port };
  throw invalid(text, `${option} takes ADDRESS:PORT`);
}

/**
 * A move by its id, or by the name of its VM: then the open one, else the last. Failure:
 * migration/unknown.
 */
export async function findMigration(
  { text, backend }: { readonly text: string; readonly backend: Backend },
): Promise<MigrationId> {
  if (parseMigrationId(text) !== null) return text as MigrationId;
  if (text.includes('/')) throw invalid(text, 'write migrate/VM/REQUEST or the name of a VM');
  const vm = readVmName(text);
  const workflows = await backend.workflows();
  const running = (await workflows.listMoves({ vm, openOnly: true, countMax: 1 }))[0];
  const last = running ?? (await workflows.listMoves({ vm, openOnly: false, countMax: 1 }))[0];
  if (last !== undefined && parseMigrationId(last.migration) !== null) {
    return last.migration as MigrationId;
  }
  // Temporal's list is seconds behind; the ledger knows an open move at once.
  const entry = await backend.ledger().then((ledger) => ledger.readVm(vm)).catch(() => null);
  if (entry?.migration !== undefined && entry.migration !== null) return entry.migration;
  throw new CodedError('migration/unknown', `no move of ${vm} is known`);
}
