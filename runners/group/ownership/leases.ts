/**
 * Lease arithmetic of the ledger. The host counts its lease from when the request was sent, the
 * ledger from when it decided, so the ledger's is never the shorter one.
 */
import { timing } from '../../../contracts/limits.ts';

/** How long after the last renewal the ledger may give a VM away: TTL x (1 + rho) + margin. */
export const leaseOutAfterMs = (ttlMs: number = timing.leaseTtlMs): number =>
  ttlMs * (1 + timing.leaseClockRho) + timing.leaseMarginMs;

/** True when no host with a working guard can still act on a lease renewed at `renewedAtMs`. */
export const leaseRunOut = (
  { renewedAtMs, nowMs, ttlMs }: {
    readonly renewedAtMs: number; readonly nowMs: number; readonly ttlMs?: number | undefined;
  },
): boolean => nowMs - renewedAtMs > leaseOutAfterMs(ttlMs);
