/**
 * Lab only: a fault in the memory of one move, planted by a file of the VM's name in the hold
 * directory, so that it can be shown that a check finds it. Hosts of the production profile have no
 * such directory.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { VmName } from '../../contracts/identity.ts';
import type { PlantedFault } from '../data-plane/sessions.ts';

const shape = z.strictObject({
  side: z.enum(['source', 'target']),
  fault: z.enum(['read', 'skipped', 'received', 'decoded', 'stored']),
  page: z.int().min(0).nullable(),
  mark: z.string().regex(/^[0-9a-f]{32}$/).nullable(),
  /** The target's check begins that much later, so that its guest writes what it will find. */
  checkAfterMs: z.int().min(0).max(10_000).default(0),
});
export type PlantedFile = z.infer<typeof shape>;

/** File that plants a fault. */
export const plantedFile = (directory: string, vm: VmName): string =>
  join(directory, `${vm}.planted.json`);

async function readPlanted(directory: string | null, vm: VmName): Promise<PlantedFile | null> {
  if (directory === null) return null;
  const text = await readFile(plantedFile(directory, vm), 'utf8').catch(() => null);
  return text === null ? null : shape.parse(JSON.parse(text));
}

/** The fault of this side, null without a directory or a file. */
export async function plantedFault(
  directory: string | null, vm: VmName, planting: PlantedFile['side'],
): Promise<PlantedFault | null> {
  const planted = await readPlanted(directory, vm);
  if (planted === null || planted.side !== planting) return null;
  const { fault, page, mark } = planted;
  return { fault, page, mark };
}

/** How much later the target's check begins, ms; 0 without a directory or a file. */
export const plantedDelayMs = async (directory: string | null, vm: VmName): Promise<number> =>
  (await readPlanted(directory, vm))?.checkAfterMs ?? 0;
