/**
 * Lab only: keeps a VM that was moved here standing between Started and its first instruction, while
 * a file of its name lies in the hold directory, so that a benchmark can compare the disks of both
 * sides in the very state of Started. Hosts of the production profile have no such directory.
 */
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VmName } from '../../contracts/identity.ts';

const lookEveryMs = 20;
/** Whoever put the file there and died holds a VM no longer than this, ms. */
export const holdMsMax = 60_000;

/** File that holds the VM, and the one by which the runner says that it stands. */
export const holdFiles = (
  directory: string, vm: VmName,
): { readonly hold: string; readonly held: string } =>
  ({ hold: join(directory, vm), held: join(directory, `${vm}.held`) });

/** Resolves at once without a directory or a file, else when the file is gone or after a minute. */
export async function holdBeforeResume(
  directory: string | null, vm: VmName, msMax = holdMsMax,
): Promise<void> {
  if (directory === null) return;
  const { hold, held } = holdFiles(directory, vm);
  if (!existsSync(hold)) return;
  await writeFile(held, '');
  for (const end = performance.now() + msMax; existsSync(hold) && performance.now() < end;) {
    await sleep(lookEveryMs);
  }
  await rm(held, { force: true });
}
