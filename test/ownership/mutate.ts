/** Makes a mutated copy of a source folder that can be imported beside the real one. */
import { cp, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { Mutant } from './mutants.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** Folders that are copied as a whole, so that the mutated file is the one that all others import. */
const copied = ['runners/group', 'runners/ledger'];

/**
 * Copies the ledger's code to a temporary folder, applies the mutant, and answers a loader for it.
 * Throws when the text to replace is not there exactly once: then the mutant tests nothing.
 */
export async function mutated(mutant: Mutant) {
  const dir = await mkdtemp(join(tmpdir(), 'novacron-mutant-'));
  for (const folder of copied) {
    await cp(join(root, folder), join(dir, folder), { recursive: true });
  }
  const path = join(dir, mutant.file);
  const text = await readFile(path, 'utf8');
  const parts = text.split(mutant.find);
  if (parts.length !== 2) {
    await rm(dir, { recursive: true });
    throw new Error(`"${mutant.name}" fits ${mutant.file} ${parts.length - 1} times, not once`);
  }
  await writeFile(path, parts.join(mutant.replace));
  for (const folder of copied) await redirectImports(dir, folder);
  return {
    load: async <T>(file: string): Promise<T> =>
      await import(pathToFileURL(join(dir, file)).href) as T,
    close: () => rm(dir, { recursive: true, force: true }),
  };
}

/** Points imports that leave the copy at the originals, packages included. */
async function redirectImports(dir: string, folder: string): Promise<void> {
  for (const name of await readdir(join(dir, folder), { recursive: true })) {
    if (!name.endsWith('.ts')) continue;
    const path = join(dir, folder, name);
    const text = await readFile(path, 'utf8');
    const redirected = text.replaceAll(/from '([^']+)'/g, (whole, target: string) => {
      if (target.startsWith('node:')) return whole;
      if (!target.startsWith('.')) return `from '${import.meta.resolve(target)}'`;
      const inside = resolve(dirname(path), target).slice(dir.length + 1);
      return copied.some((one) => inside.startsWith(`${one}/`))
        ? whole : `from '${pathToFileURL(join(root, inside)).href}'`;
    });
    await writeFile(path, redirected);
  }
}
