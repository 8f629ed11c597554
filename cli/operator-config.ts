/**
 * The configuration of `novacron`: where Temporal, the ledger and this operator's certificate are.
 * Decides where it is looked for; what is done with it is left to the commands.
 *
 * Order: `--config FILE`, NOVACRON_CONFIG, ~/.config/novacron/config.json, then the lab's own
 * `.novacron/lab/operator.json`, in the working directory or the project's.
 */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';
import { limits } from '../contracts/limits.ts';
import { temporalTarget } from '../payloads/temporal-connection.ts';

const path = z.string().min(1).max(limits.pathLengthMax);

export const operatorConfig = z.strictObject({
  version: z.literal(1),
  temporal: temporalTarget.extend({
    /** Base URL of Temporal's UI, for links; null where there is none. */
    uiUrl: z.url({ protocol: /^https?$/ }).nullable(),
  }),
  payloadKeysPath: path.nullable(),
  ledger: z.strictObject({ address: z.string().max(253), port: z.int().min(1).max(65_535) }),
  tls: z.strictObject({ certPath: path, keyPath: path, caPath: path }),
  /** Default: revoked.json beside the authority's certificate. */
  revokedPath: path.optional(),
  /** Folder of the certificate authority; only where this machine holds it. */
  certificatesDir: path.optional(),
  /** Hosts whose local socket this machine can reach: the lab's, or the host itself. */
  hosts: z.record(z.string(), z.looseObject({ localSocket: path.optional() })),
});
export type OperatorConfig = z.infer<typeof operatorConfig> & { readonly revokedPath: string };

const pathFields = new Set(['certPath', 'keyPath', 'caPath', 'revokedPath', 'certificatesDir',
  'payloadKeysPath', 'localSocket']);

function resolvePaths(value: unknown, folder: string): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([field, inner]) => [field,
    pathFields.has(field) && typeof inner === 'string' && !isAbsolute(inner)
      ? join(folder, inner) : resolvePaths(inner, folder)]));
}

/** What the search for a configuration depends on. */
export interface ConfigPlaces {
  readonly flag: string | null;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly workingDirectory: string;
  readonly projectDirectory: string;
}

/**
 * Candidates in order; the first that a person named must exist, of the others the first that does.
 */
export function findConfigPath(places: ConfigPlaces): string {
  const { flag, environment, workingDirectory, projectDirectory } = places;
  const named = flag ?? environment['NOVACRON_CONFIG'];
  if (named !== undefined && named !== '') return resolve(workingDirectory, named);
  const home = environment['XDG_CONFIG_HOME'] ?? join(environment['HOME'] ?? '/', '.config');
  const candidates = [
    join(home, 'novacron', 'config.json'),
    join(workingDirectory, '.novacron', 'lab', 'operator.json'),
    join(projectDirectory, '.novacron', 'lab', 'operator.json'),
  ];
  const found = candidates.find((candidate) => existsSync(candidate));
  if (found !== undefined) return found;
  throw new CodedError('input/invalid',
    'no configuration: start the lab with `novacron demo`, write '
    + `${candidates[0]}, or name one with --config or NOVACRON_CONFIG`);
}

/** Reads the configuration; `input/invalid` names file and field. */
export function loadOperatorConfig(places: ConfigPlaces): OperatorConfig {
  const file = findConfigPath(places);
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new CodedError('input/invalid', `${file}: ${(error as Error).message}`, error);
  }
  const parsed = operatorConfig.safeParse(resolvePaths(value, dirname(file)));
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) =>
      `${issue.path.join('.') || 'the file'}: ${issue.message}`);
    throw new CodedError('input/invalid', `${file}: ${problems.join('; ')}`);
  }
  const { tls } = parsed.data;
  return { ...parsed.data,
    revokedPath: parsed.data.revokedPath ?? join(dirname(tls.caPath), 'revoked.json') };
}
