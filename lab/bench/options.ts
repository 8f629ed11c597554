/**
 * The benchmark's options: reads their values, each throwing commander's error with what it wants,
 * and adds those that several commands share.
 */
import { join } from 'node:path';
import { InvalidArgumentError } from 'commander';
import type { Command } from 'commander';
import { parseBytes } from '../../contracts/units.ts';
import { cacheDirectory } from '../guest-image.ts';

/** "200MB", "1GiB". */
export function size(text: string): number {
  try {
    return parseBytes(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

/** A whole number from 1 to 1000. */
export function count(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 1000) {
    throw new InvalidArgumentError('a whole number from 1 to 1000');
  }
  return value;
}

/** "125MB/s", "max"; infinity is without limit (commander turns null into ''). */
export const rate = (text: string): number =>
  text === 'max' ? Infinity : size(text.replace(/\/s$/, ''));

/** Infinity and absent are null: no limit. */
export const finiteOrNull = (value: number | undefined): number | null =>
  value === undefined || value === Infinity ? null : value;

/** "20ms" or "20". */
export function milliseconds(text: string): number {
  const value = Number(text.replace(/ms$/, ''));
  if (!Number.isFinite(value) || value < 0) throw new InvalidArgumentError('ms, like 20ms');
  return value;
}

/** "0.1%" or "0.001". */
export function share(text: string): number {
  const value = text.endsWith('%') ? Number(text.slice(0, -1)) / 100 : Number(text);
  if (!(value >= 0 && value < 1)) throw new InvalidArgumentError('a share like 0.1% or 0.001');
  return value;
}

/** One of a few words. */
export const oneOf = <T extends string | number>(allowed: readonly T[]) => (text: string): T => {
  const found = allowed.find((value) => String(value) === text);
  if (found === undefined) throw new InvalidArgumentError(`one of ${allowed.join(', ')}`);
  return found;
};

/** Several of them, with commas between. */
export const listOf = <T>(each: (text: string) => T) => (text: string): T[] =>
  text.split(',').map(each);

/** What every benchmark of whole moves takes: which QEMU and guest, and where its lines go. */
export const withSurroundings = (command: Command): Command => command
  .option('--qemu <file>', 'description of the QEMU to use',
    join(cacheDirectory, 'qemu-10/qemu.json'))
  .option('--guest <file>', 'description of the guest image',
    join(cacheDirectory, 'guest/guest.json'))
  .option('--json', 'one JSON line a run, the last line sums up', false)
  .option('--out <file>', 'add the JSON lines to this file');
