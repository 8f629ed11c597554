/**
 * What errors that others throw (Node, the kernel, Temporal's client) mean as rows of the failure
 * table. By structure, so that workflows may use it too; what nobody expected stays `internal`.
 */
import { CodedError } from './failures.ts';
import type { FailureCode } from './failures.ts';

/** By the kernel's name of the error (`code` of Node's errors). */
const byErrno: Readonly<Record<string, FailureCode>> = {
  ENOSPC: 'disk/full', EDQUOT: 'disk/full', EFBIG: 'disk/full',
  ENOMEM: 'host/exhausted', EMFILE: 'host/exhausted', ENFILE: 'host/exhausted',
  EAGAIN: 'host/exhausted',
  EIO: 'host/files', EROFS: 'host/files', EACCES: 'host/files', EPERM: 'host/files',
  ENOENT: 'host/files', ENOTDIR: 'host/files', EISDIR: 'host/files', EEXIST: 'host/files',
  ENOTEMPTY: 'host/files', EBUSY: 'host/files', ELOOP: 'host/files', ESTALE: 'host/files',
  ECONNREFUSED: 'link/lost', ECONNRESET: 'link/lost', ECONNABORTED: 'link/lost',
  EPIPE: 'link/lost', ENOTCONN: 'link/lost', ETIMEDOUT: 'link/lost', EHOSTUNREACH: 'link/lost',
  ENETUNREACH: 'link/lost', EADDRNOTAVAIL: 'link/lost',
  ESRCH: 'vmm/gone',
};

/** By gRPC's status (`code` of what Temporal's client throws). */
const byGrpcStatus: Readonly<Record<number, FailureCode>> = {
  1: 'temporal/unreachable', 4: 'temporal/unreachable', 8: 'temporal/unreachable',
  10: 'temporal/unreachable', 14: 'temporal/unreachable',
};

/** Causes that are followed; Temporal's client nests two. */
const causeDepthMax = 5;

function codeOf(error: unknown): FailureCode {
  let current = error;
  for (let depth = 0; depth < causeDepthMax; depth += 1) {
    if (typeof current !== 'object' || current === null) break;
    const { code, address, path, cause } = current as Record<string, unknown>;
    const known = typeof code === 'string' ? byErrno[code]
      : typeof code === 'number' ? byGrpcStatus[code] : undefined;
    const isUnder = (root: string): boolean =>
      [address, path].some((at) => typeof at === 'string' && at.startsWith(root));
    // What was read there was a process.
    if (known === 'host/files' && isUnder('/proc/')) return 'vmm/gone';
    // A socket in a directory is a process on this very host.
    if (known === 'link/lost' && isUnder('/')) return 'host/files';
    if (known !== undefined) return known;
    current = cause;
  }
  return 'internal';
}

/** The error itself if it is one of the closed list, else one that says the same. */
export function codedErrorOf(error: unknown): CodedError {
  if (error instanceof CodedError) return error;
  const detail = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return new CodedError(codeOf(error), detail, error);
}
