/** Processes of the hosts, told apart by the engine that they belong to. */
import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import type { LabHost } from '../network/plan.ts';
import { engineVariable } from './engine.ts';

/** What /proc shows for the network namespace of that name. */
export const linkOf = (namespace: string): string => `net:[${statSync(`/run/netns/${namespace}`).ino}]`;

/** Pids of the processes whose network namespace is one of these. */
export function pidsIn(namespaceLinks: ReadonlySet<string>): number[] {
  const pids: number[] = [];
  for (const entry of readdirSync('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) continue;
    try {
      if (namespaceLinks.has(readlinkSync(`/proc/${pid}/ns/net`))) pids.push(pid);
    } catch {
      // It ended between listing and reading.
    }
  }
  return pids;
}

/** Value of `engineVariable` in a process's environment; null without one or when it is gone. */
export function markOf(pid: number): string | null {
  try {
    const prefix = `${engineVariable}=`;
    return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0')
      .find((entry) => entry.startsWith(prefix))?.slice(prefix.length) ?? null;
  } catch {
    return null;
  }
}

const runnerProgram = 'runners/host/main.ts';

/** Whether this is a host runner. */
export function isRunner(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(runnerProgram);
  } catch {
    return false;
  }
}

/** Sends a signal to the runners of the hosts. */
export function signalRunners(hosts: readonly LabHost[], signal: NodeJS.Signals): void {
  for (const pid of pidsIn(new Set(hosts.map(({ namespace }) => linkOf(namespace))))) {
    if (!isRunner(pid)) continue;
    try {
      process.kill(pid, signal);
    } catch {
      // It ended between listing and signal.
    }
  }
}
