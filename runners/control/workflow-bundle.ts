/**
 * The workflows as one script for Temporal's sandbox: taken from build/ where it is newer than its
 * sources, else made anew (a few seconds) and kept there.
 */
import { glob, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundleWorkflowCode, DefaultLogger } from '@temporalio/worker';
import { failureConverterPath } from '../../payloads/temporal-connection.ts';
import { writeFileAtomically } from '../../payloads/atomic-file.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const workflowsPath = join(root, 'workflows/index.ts');
/** Where the prebuilt script lies. */
export const bundlePath = join(root, 'build/workflows.js');
const sourcePatterns = ['workflows/**/*.ts', 'contracts/*.ts', 'payloads/failure-converter.ts'];

async function isFresh(): Promise<boolean> {
  const built = await stat(bundlePath).catch(() => null);
  if (built === null) return false;
  for await (const path of glob(sourcePatterns, { cwd: root })) {
    if ((await stat(join(root, path))).mtimeMs > built.mtimeMs) return false;
  }
  return true;
}

/** The script's text. Where build/ can't be written (a read-only image) it is made each time. */
export async function workflowBundle(): Promise<{ readonly code: string }> {
  if (await isFresh()) return { code: await readFile(bundlePath, 'utf8') };
  const { code } = await bundleWorkflowCode({
    workflowsPath,
    failureConverterPath,
    logger: new DefaultLogger('WARN'),
  });
  await writeFileAtomically({ path: bundlePath, data: code, mode: 0o644 }).catch(() => undefined);
  return { code };
}
