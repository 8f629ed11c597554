/** What end-to-end tests in the lab need from the machine, and what of it is missing. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe } from 'vitest';
import { cacheDirectory, projectRoot } from '../../lab/guest-image.ts';

const needs: readonly { readonly what: string; readonly isThere: () => boolean }[] = [
  { what: 'root', isThere: () => process.getuid?.() === 0 },
  { what: 'the guest image', isThere: () => existsSync(join(cacheDirectory, 'guest/guest.json')) },
  {
    what: 'the native addon',
    isThere: () => existsSync(join(projectRoot, 'native/generated/novacron.linux-x64-gnu.node')),
  },
  {
    what: 'the guard program',
    isThere: () => existsSync(join(projectRoot, 'native/target/release/novacron-guard')),
  },
  { what: 'qemu-system-x86_64', isThere: () => onPath('qemu-system-x86_64') },
  { what: 'nft', isThere: () => onPath('nft') },
];

const onPath = (program: string): boolean => (process.env['PATH'] ?? '').split(':')
  .concat('/usr/sbin', '/sbin').some((directory) => existsSync(join(directory, program)));

/** Names of what is missing; empty when the lab can run the product. */
export const missingForLab = (): string[] =>
  needs.filter(({ isThere }) => !isThere()).map(({ what }) => what);

/** What tests of namespaces alone need. */
export const missingRoot = (): string[] =>
  process.getuid?.() === 0 ? [] : ['root (run them with sudo)'];

/** Says why tests are not run, so that no skip is silent. */
export function tellSkipped(what: string, missing: readonly string[]): void {
  console.warn(`skipped: ${what} needs ${missing.join(', ')} (npm run setup makes the rest)`);
}

/**
 * `describe` for tests that need something of the machine: where it is missing they count as
 * skipped, and what is missing is printed. Where nothing is, nothing is skipped.
 */
export function describeWith(what: string, missing: readonly string[], tests: () => void): void {
  if (missing.length > 0) tellSkipped(what, missing);
  describe.skipIf(missing.length > 0)(what, tests);
}

/** `describeWith` for what needs the whole lab. */
export const describeInLab = (what: string, tests: () => void): void =>
  describeWith(what, missingForLab(), tests);
