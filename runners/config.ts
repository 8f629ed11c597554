/**
 * The configuration files of our processes: their shape, and errors that say which file, which
 * field, what is wrong and what to write. Decides nothing about what the fields do.
 */
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import { z } from 'zod';
import { CodedError } from '../contracts/failures.ts';
import { isHostName } from '../contracts/identity.ts';
import { limits, timing } from '../contracts/limits.ts';
import { temporalTarget } from '../payloads/temporal-connection.ts';

/** A configuration is written by hand or by the lab; more than this is not one. */
const configBytesMax = 256 * 1024;

const path = z.string().min(1).max(limits.pathLengthMax)
  .refine((text) => !text.includes('\0'), 'a path without zero bytes');
const portRule = 'a port from 0 to 65535';
const port = z.int('a port number').min(0, portRule).max(65_535, portRule);
const ipAddress = z.string().refine((text) => isIP(text) !== 0, 'an IP address, e.g. 198.18.2.11');
const dnsOrIp = z.string().regex(/^[A-Za-z0-9.:_-]{1,253}$/, 'an IP address or a DNS name');
const endpoint = z.strictObject({ address: dnsOrIp, port });
const listener = z.strictObject({ address: ipAddress, port });
const tlsMaterial = z.strictObject({ certPath: path, keyPath: path, caPath: path });

const temporal = temporalTarget.extend({
  /** address:port of the frontend. */
  address: z.string().regex(/^[^\s:]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$/,
    'address:port, e.g. 127.0.0.1:7233'),
});
const logLevel = z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']);

/** Fields that every process has. */
const processFields = {
  version: z.literal(1),
  profile: z.enum(['lab', 'production']),
  tls: tlsMaterial,
  revokedPath: path,
  /** Management address for /metrics and /healthz; null switches them off. */
  metrics: listener.nullable(),
  logLevel: logLevel.default('info'),
};

/** Lab only: socket at which fault points are armed (contracts/fault-points.ts). */
const faultSocket = path.nullable().default(null);

/** Host runner. Relative paths are taken from the folder of the file. */
export const hostConfig = z.strictObject({
  ...processFields,
  name: z.string().refine(isHostName, "1 to 30 of a-z, 0-9 and '-', starting with a letter"),
  /** Durable: VM directories, disks, records. */
  stateDir: path,
  /** Sockets and pid files; may vanish at a reboot. */
  runtimeDir: path,
  /** tmpfs where guest RAM files live. */
  memoryDir: path,
  temporal,
  ledger: endpoint,
  payloadKeysPath: path.nullable(),
  /** Control connections of moves. */
  peer: listener,
  /** Byte lanes of moves. */
  lanes: listener,
  /** Bridge that VM network cards are plugged into; null for hosts without VM traffic. */
  vmBridge: z.string().regex(/^[a-z][a-z0-9._-]{0,14}$/, 'a bridge name of at most 15 characters')
    .nullable(),
  segments: z.array(z.string().regex(/^[a-z][a-z0-9-]{0,19}$/)).max(64),
  qemu: z.strictObject({
    command: z.array(z.string().min(1)).min(1).max(64),
    environment: z.record(z.string().regex(/^[A-Z_][A-Z0-9_]*$/), z.string()),
  }),
  qemuImg: z.array(z.string().min(1)).min(1).max(64),
  /** Source images and kernels of new VMs are taken from below these only. */
  imageDirectories: z.array(path).max(16).default(['/var/lib/novacron/images']),
  /** UEFI images for VMs that boot with it. */
  firmware: z.strictObject({ uefiCode: path, uefiVars: path })
    .default({ uefiCode: '/usr/share/OVMF/OVMF_CODE.fd',
      uefiVars: '/usr/share/OVMF/OVMF_VARS.fd' }),
  /** Guard program that ends a VMM at the end of its lease. */
  guardPath: path,
  /** Program that leads VMMs to shared volumes; null for a host without such VMs. */
  volumePath: path.nullable().default(null),
  accelerator: z.enum(['tcg', 'kvm']),
  /** First uid for QEMU processes, one per VM; below 1000 are system users. */
  uidBase: z.int().min(1_000, 'a uid of at least 1000').max(2_000_000_000),
  /** Lab only: a moved VM with a file of its name here waits before its first instruction. */
  holdDirectory: path.nullable().default(null),
  faultSocket,
});
export type HostConfig = z.infer<typeof hostConfig>;

/** Ledger process. */
export const ledgerConfig = z.strictObject({
  ...processFields, stateDir: path, listen: listener,
  /** Length of leases, ms. Hosts learn it with each renewal; a guard believes at most a minute. */
  leaseTtlMs: z.int().min(1_000).max(60_000).default(timing.leaseTtlMs),
});
export type LedgerConfig = z.infer<typeof ledgerConfig>;

/** Control worker. */
export const controlConfig = z.strictObject({
  ...processFields,
  temporal,
  ledger: endpoint,
  payloadKeysPath: path.nullable(),
  /** Codec endpoint for Temporal's UI; null switches it off. */
  codec: z.strictObject({ listen: listener, origins: z.array(z.string()).max(16) }).nullable(),
  /** Worker deployment version; a new one leaves running moves with the old workers. */
  buildId: z.string().regex(/^[A-Za-z0-9._-]{1,64}$/),
  faultSocket,
});
export type ControlConfig = z.infer<typeof controlConfig>;

/** Names of fields that hold paths, resolved against the folder of the file. */
const pathFields = new Set(['stateDir', 'runtimeDir', 'memoryDir', 'certPath', 'keyPath', 'caPath',
  'revokedPath', 'payloadKeysPath', 'guardPath', 'volumePath',
  'holdDirectory', 'faultSocket']);

function resolvePaths(value: unknown, folder: string): unknown {
  if (Array.isArray(value)) return value.map((item) => resolvePaths(item, folder));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([field, inner]) => [field,
    pathFields.has(field) && typeof inner === 'string' && !isAbsolute(inner)
      ? join(folder, inner) : resolvePaths(inner, folder)]));
}

/** Problems as `field: what is wrong; write …`, one a line. */
function describeIssues(error: z.ZodError): string {
  return error.issues.map((issue) => {
    const field = issue.path.length === 0 ? 'the file' : issue.path.join('.');
    if (issue.code === 'unrecognized_keys') {
      return `${field}: unknown field ${issue.keys.join(', ')}; remove it or correct its name`;
    }
    if (issue.code === 'invalid_value') {
      const allowed = issue.values.map((value) => JSON.stringify(value)).join(' or ');
      return `${field}: not one of the allowed values; write ${allowed}`;
    }
    if (issue.code === 'invalid_type') return `${field}: missing or wrong; write ${issue.expected}`;
    return `${field}: ${issue.message}`;
  }).join('; ');
}

/** The checks that single fields can't make; answers problems. */
function productionProblems(config: object): string[] {
  const {
    profile, temporal: server, payloadKeysPath, holdDirectory, faultSocket: faults, leaseTtlMs,
  } = config as Partial<HostConfig & LedgerConfig>;
  if (profile !== 'production') return [];
  return [
    ...(server?.tls === null
      ? ['temporal.tls: null is for the lab; write certPath, keyPath, caPath'] : []),
    ...(payloadKeysPath === null
      ? ['payloadKeysPath: null is for the lab; write the path of the keys'] : []),
    ...(typeof holdDirectory === 'string'
      ? ['holdDirectory: it is for the lab; remove it'] : []),
    ...(typeof faults === 'string' ? ['faultSocket: it is for the lab; remove it'] : []),
    // A ledger that starts with shorter leases than hosts still hold would give VMs away too early.
    ...(leaseTtlMs !== undefined && leaseTtlMs !== timing.leaseTtlMs
      ? [`leaseTtlMs: another length is for the lab; write ${timing.leaseTtlMs} or leave it out`]
      : []),
  ];
}

/**
 * Reads and checks a configuration file. `input/invalid` lists every problem at once, each with its
 * field and what to write; production refuses what only the lab may do (no TLS, no payload keys).
 */
export function loadConfig<S extends z.ZodType<object>>(
  { path: file, schema }: { readonly path: string; readonly schema: S },
): z.infer<S> {
  const where = resolve(file);
  let text: string;
  try {
    if (statSync(where).size > configBytesMax) {
      throw new CodedError('input/invalid', `${where}: larger than ${configBytesMax} bytes`);
    }
    text = readFileSync(where, 'utf8');
  } catch (error) {
    if (error instanceof CodedError) throw error;
    throw new CodedError('input/invalid',
      `${where}: can't be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`, error);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CodedError('input/invalid', `${where}: not JSON: ${(error as Error).message}`, error);
  }
  const parsed = schema.safeParse(resolvePaths(value, dirname(where)));
  if (!parsed.success) {
    throw new CodedError('input/invalid', `${where}: ${describeIssues(parsed.error)}`);
  }
  const problems = productionProblems(parsed.data);
  if (problems.length > 0) {
    throw new CodedError('input/invalid', `${where}: ${problems.join('; ')}`);
  }
  return parsed.data;
}

/**
 * Path of the configuration from `--config FILE` or NOVACRON_CONFIG. `input/invalid` tells both.
 */
export function configPathOf(
  { argv, environment }: {
    readonly argv: readonly string[];
    readonly environment: Readonly<Record<string, string | undefined>>;
  },
): string {
  const flag = argv.indexOf('--config');
  const given = flag >= 0 ? argv[flag + 1] : environment['NOVACRON_CONFIG'];
  if (given !== undefined && given !== '') return given;
  throw new CodedError('input/invalid',
    'no configuration: write --config FILE or set NOVACRON_CONFIG');
}
