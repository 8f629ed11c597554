/** What end-to-end tests in the lab need from the machine, and what of it is missing. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
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

/** Says why tests are not run, so that no skip is silent. */
export function tellSkipped(what: string, missing: readonly string[]): void {
  console.warn(`skipped: ${what} needs ${missing.join(', ')} (npm run setup makes the rest)`);
}
