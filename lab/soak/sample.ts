/**
 * Reads how much everything in a lab holds at a quiet moment: each process from /proc, the files of
 * the lab's directories, the histories that Temporal still writes. Judges nothing.
 */
import { readFileSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import type { Client } from '@temporalio/client';
import { childrenOf } from '../faults/plant.ts';
import type { CampaignGuest, Plant } from '../faults/plant.ts';
import { processesOfLab } from '../processes.ts';
import { markOf } from '../state.ts';
import type { Measure, Reading } from './growth.ts';

type Held = Omit<Reading, 'moves'>;

/** Memory of its own, descriptors and threads of a process; nothing when it is gone. */
export function processHolds(who: string, pid: number): Held[] {
  try {
    const life = `${pid}/${markOf(who, pid).startTicks}`;
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const field = (name: string): number =>
      Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? 0);
    const held: [Measure, number][] = [
      // Pages of files, the guest's memory among them, are counted as files.
      ['memoryBytes', field('RssAnon') * 1024],
      ['descriptors', readdirSync(`/proc/${pid}/fd`).length],
      ['threads', field('Threads')],
    ];
    return held.map(([what, value]) => ({ who, what, life, value }));
  } catch {
    return [];
  }
}

/** A VMM whose guard was killed has another parent. */
function isGuard(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim() === 'novacron-guard';
  } catch {
    return false;
  }
}

/** Files below a directory, those of logs and of Temporal's own database left out. */
export function filesBelow(directory: string): string[] {
  try {
    return readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => !entry.isDirectory())
      .map((entry) => relative(directory, join(entry.parentPath, entry.name)))
      .filter((path) => !/^(logs\/|temporal\.db)/.test(path));
  } catch {
    return [];
  }
}

/** Longest history of a workflow that has not ended, and the mean of those that ended last. */
async function histories(client: Client, life: string): Promise<Held[]> {
  let open = 0;
  let [events, bytes] = [0, 0];
  const ended: number[] = [];
  for await (const { status, historyLength, historySize } of client.workflow.list()) {
    if (status.name === 'RUNNING') {
      open += 1;
      events = Math.max(events, historyLength);
      bytes = Math.max(bytes, historySize ?? 0);
    } else if (ended.length < endedCount) ended.push(historySize ?? 0);
    // The list begins with what is open or ended last.
    if (ended.length >= endedCount) break;
  }
  const mean = ended.reduce((sum, one) => sum + one, 0) / Math.max(1, ended.length);
  return [
    { who: 'open workflows', what: 'processes', life, value: open },
    { who: 'open workflows', what: 'historyEvents', life, value: events },
    { who: 'open workflows', what: 'historyBytes', life, value: bytes },
    { who: 'ended workflows', what: 'historyBytes', life, value: Math.round(mean) },
  ];
}
const endedCount = 5;

/** Everything that a lab holds. `moves` is the number of moves so far. */
export async function sampleOf(
  plant: Plant, guest: CampaignGuest, moves: number,
): Promise<Reading[]> {
  const { lab } = plant;
  const processes = lab.running().flatMap(({ spec: { name }, pid }) => [
    ...processHolds(name, pid),
    ...(name === 'temporal'
      ? childrenOf(pid).flatMap((child) => processHolds('temporal/server', child)) : []),
  ]);
  // A move makes a new one each time; what counts is that they don't come to hold more.
  const ofGuest = (['source-vmm', 'source-guard'] as const).flatMap((victim) =>
    plant.pidsOf(victim, guest.vm).filter((pid) => victim === 'source-vmm' || isGuard(pid))
      .flatMap((pid) => processHolds(victim.slice('source-'.length), pid)
        .map((held) => ({ ...held, life: lab.id }))));
  const places = Object.entries(lab.directories).map(([name, directory]): Held => ({
    who: `files in ${name}`, what: 'files', life: lab.id, value: filesBelow(directory).length }));
  const all: Held[] = [
    ...processes, ...ofGuest, ...places,
    {
      who: 'the lab', what: 'processes', life: lab.id, value: processesOfLab(lab.id).length,
    },
    ...await histories(plant.client, lab.id),
  ];
  return all.map((held) => ({ ...held, life: `${lab.id}/${held.life}`, moves }));
}
