/**
 * Which group a VMM needs to open a device, so that the device need not be open to everybody.
 */
import { stat } from 'node:fs/promises';
import { CodedError } from '../../contracts/failures.ts';

const readWrite = 0o6;

/** The part of a stat that decides. */
export interface DeviceRights {
  readonly mode: number;
  readonly gid: number;
}

/**
 * The group that opens a device for reading and writing: null when everybody may, `none` when no
 * group but root's does. Pure.
 */
export function groupFor({ mode, gid }: DeviceRights): number | null | 'none' {
  if ((mode & readWrite) === readWrite) return null;
  return gid !== 0 && ((mode >> 3) & readWrite) === readWrite ? gid : 'none';
}

/** The same of a device on this host. Failure: vm/start-failed when a VMM could not open it. */
export async function deviceGroup(path: string): Promise<number | null> {
  const rights = await stat(path).catch((error: unknown) => {
    throw new CodedError('vm/start-failed', `${path}: ${(error as Error).message}`, error);
  });
  const group = groupFor(rights);
  if (group !== 'none') return group;
  throw new CodedError('vm/start-failed', `${path} is open neither to everybody nor to a group`);
}
