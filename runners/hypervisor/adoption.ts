/**
 * What a runner finds when it starts: VMMs outlive it. Decides what is a running VM, what a stopped
 * one and what nobody accounts for; removing orphans is the sweep's, after the ledger was asked.
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Incarnation, VmName } from '../../contracts/identity.ts';
import type { VmRunState } from '../../contracts/runner.ts';
import { isVmmAlive, readGuard } from './guard-process.ts';
import type { HypervisorConfig } from './hypervisor-config.ts';
import { listVmDirectories, readIdentity, vmPaths } from './vm-directory.ts';

/** One VM as `list` shows it. */
export interface VmOnHost {
  readonly vm: VmName;
  readonly runState: VmRunState;
  readonly incarnation: Incarnation | null;
  readonly vmmPid: number | null;
}

/** What `adopt` found after a start of the runner. */
export interface Adoption {
  /** VMs whose VMM lives; one that does not answer is `failed`. */
  readonly running: readonly VmOnHost[];
  /** VMs whose VMM is not there. */
  readonly stopped: readonly VmName[];
  readonly orphans: readonly Orphan[];
}

/** Something on the host that no VM accounts for. */
export interface Orphan {
  readonly kind: 'directory' | 'process' | 'memory-file';
  /** Path, or process id as text. */
  readonly what: string;
  readonly reason: string;
}

/** Looks at every VM directory, then at the memory files. Changes nothing. */
export async function adoptVms(
  config: HypervisorConfig,
  look: (vm: VmName) => Promise<VmOnHost>,
): Promise<Adoption> {
  const running: VmOnHost[] = [];
  const stopped: VmName[] = [];
  const orphans: Orphan[] = [];
  const memoryFiles = new Set<string>();
  for (const vm of await listVmDirectories(config.vmsDirectory)) {
    const paths = vmPaths(config.vmsDirectory, vm);
    const identity = await readIdentity(paths).catch(() => null);
    if (identity === null) {
      const reason = 'it was not made to the end, or its identity is damaged';
      orphans.push({ kind: 'directory', what: paths.directory, reason });
      continue;
    }
    if (identity.memoryPath !== null) memoryFiles.add(identity.memoryPath);
    const seen = await look(vm);
    if (seen.runState !== 'stopped') {
      running.push(seen);
      continue;
    }
    stopped.push(vm);
    const guard = await readGuard(paths).catch(() => null);
    if (guard !== null && (await isVmmAlive(guard))) {
      const reason = `${vm}: its VMM is of another incarnation`;
      orphans.push({ kind: 'process', what: String(guard.vmmPid), reason });
    }
  }
  for (const name of await readdir(config.memoryDirectory)) {
    const path = join(config.memoryDirectory, name);
    if (!name.endsWith('.ram') || memoryFiles.has(path)) continue;
    orphans.push({ kind: 'memory-file', what: path, reason: 'no VM has this memory' });
  }
  return { running, stopped, orphans };
}
