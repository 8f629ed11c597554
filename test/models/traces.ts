/**
 * Turns a ledger's log into traces for docs/models/LedgerTrace.tla: a line for each entry of a VM
 * that changes a variable of the specification. Epochs are counted from the VM's creation, hosts
 * are called a, b, c in the order in which they come up.
 */
import type { HostName, VmName } from '../../contracts/identity.ts';
import type { LedgerEventKind, VmEntry } from '../../contracts/ownership.ts';
import { loadLiveLog } from '../../runners/group/ledger-log/durable-log.ts';
import type { LogStorage } from '../../runners/group/ledger-log/log-storage.ts';
import { tlc } from './tlc.ts';

const letters = ['a', 'b', 'c'] as const;
type Letter = (typeof letters)[number];
const phases = { owned: 'Owned', preparing: 'Preparing', unsettled: 'Unsettled' } as const;

/** Values of the specification's variables after an entry. */
export interface TraceLine {
  readonly kind: LedgerEventKind;
  readonly st: (typeof phases)[keyof typeof phases];
  readonly ep: number;
  readonly own: Letter;
  readonly prev: Letter;
  readonly dst: Letter;
  readonly ready: boolean;
  readonly started: number;
  readonly lastst: number;
  readonly hold: Letter;
}
export interface Trace {
  readonly vm: VmName;
  readonly lines: readonly TraceLine[];
}

class Names {
  readonly #known = new Map<HostName, Letter>();

  of(host: HostName | null): Letter {
    if (host === null) return 'a';
    const known = this.#known.get(host);
    if (known !== undefined) return known;
    const letter = letters[this.#known.size];
    if (letter === undefined) throw new Error('the specification is checked with three hosts');
    this.#known.set(host, letter);
    return letter;
  }
}

interface Open {
  readonly lines: TraceLine[];
  readonly names: Names;
  /** Epochs before the VM was created. */
  readonly before: number;
}

function lineOf(kind: LedgerEventKind, entry: VmEntry, { names, before }: Open): TraceLine {
  if (entry.phase === 'absent' || entry.owner === null) throw new Error(`${entry.vm} is absent`);
  const own = names.of(entry.owner);
  const epoch = (value: number): number => Math.max(0, value - before);
  return {
    kind, st: phases[entry.phase], ep: epoch(entry.epoch), own,
    prev: entry.phase === 'unsettled' ? names.of(entry.previous) : own,
    dst: entry.phase === 'preparing' ? names.of(entry.target) : own,
    ready: entry.phase === 'preparing' && entry.ready !== null,
    started: epoch(entry.lastStarted), lastst: epoch(entry.startedBefore),
    hold: names.of(entry.diskHolder),
  };
}

const variablesOf = ({ kind: _kind, ...variables }: TraceLine): string => JSON.stringify(variables);

/** Traces of all VMs whose creation the log still holds. Reads only. */
export async function tracesOf(storage: LogStorage): Promise<Trace[]> {
  const traces: Trace[] = [];
  const open = new Map<VmName, Open>();
  await loadLiveLog(storage, ({ event, change: { vm: record } }) => {
    if (record === null) return;
    const { entry } = record;
    if (event.kind === 'create') {
      const fresh = { lines: [], names: new Names(), before: entry.epoch - 1 };
      open.set(entry.vm, fresh);
      traces.push({ vm: entry.vm, lines: fresh.lines });
    }
    if (entry.phase === 'absent') open.delete(entry.vm);
    const known = open.get(entry.vm);
    if (known === undefined) return;
    const line = lineOf(event.kind, entry, known);
    const last = known.lines.at(-1);
    if (last === undefined || variablesOf(last) !== variablesOf(line)) known.lines.push(line);
  });
  return traces;
}

const valueOf = (value: string | number | boolean): string =>
  (typeof value === 'string' ? `"${value}"` : String(value).toUpperCase());

/** The module that brings traces to TLC. Pure. */
export function moduleOf(traces: readonly (readonly TraceLine[])[]): string {
  const texts = traces.map((lines) => `<<${lines.map((line) =>
    `[${Object.entries(line).map(([key, value]) => `${key} |-> ${valueOf(value)}`).join(', ')}]`)
    .join(',\n    ')}>>`);
  return `---- MODULE RecordedTraces ----\nEXTENDS LedgerTrace\nRecorded == <<\n  ${
    texts.join(',\n  ')}\n>>\n====\n`;
}

/** How many lines of each trace the specification explains; all of them for a good one. */
export async function explain(traces: readonly (readonly TraceLine[])[]): Promise<number[]> {
  const { output, passed } = await tlc({
    module: 'RecordedTraces', config: 'trace', modules: { RecordedTraces: moduleOf(traces) },
    // TLC's registers are of one worker each.
    workers: 1,
  });
  if (!passed) throw new Error(output.slice(-3_000));
  const explained = traces.map(() => 0);
  for (const [, trace, line] of output.matchAll(/<<"explained", (\d+), (\d+)>>/g)) {
    explained[Number(trace) - 1] = Math.max(explained[Number(trace) - 1] ?? 0, Number(line));
  }
  return explained;
}
