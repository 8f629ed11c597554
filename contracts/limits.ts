/** Every limit that crosses a process, with its unit in the name and its reason beside it. */
import { gib, kib, mib } from './units.ts';

export const limits = {
  /** Longest path taken from outside; far above real ones, far below PATH_MAX. */
  pathLengthMax: 1024,
  commandLineLengthMax: 2048,
  /** cloud-init's own limit on common clouds is 16 KiB; twice that. */
  cloudInitLengthMax: 32 * kib,
  vcpuCountMax: 64,
  /** A Linux guest with Redis does not boot in less. */
  memoryBytesMin: 64 * mib,
  /** The digest table takes 16 bytes a page: 4 GiB of it for a 1 TiB guest. */
  memoryBytesMax: 1024 * gib,
  diskBytesMax: 16 * 1024 * gib,
  diskCountMax: 8,
  nicCountMax: 4,
  /**
   * Frames between runners and to the ledger: ids, counters, digests; more is an attack or a bug.
   */
  controlFrameBytesMax: 256 * kib,
  /**
   * Post-copy pages that Quiesced may list: as page runs, so that the entry stays below a frame.
   */
  missingRunsMax: 16_384,
  /** Lanes of one migration in this version: cores, not links, are the bound on one machine. */
  laneCountMax: 16,
  /** Page tables, the VMM's own heap and the digest table: kept beside a guest's memory. */
  vmmOverheadBytes: 192 * mib,
  /** A target's disk may never be filled to its last byte by a copy. */
  diskReserveBytes: 256 * mib,
  /** Moves of one evacuation at a time: each has its lanes and its part of the link. */
  evacuationConcurrencyMax: 32,
  /** Far from Temporal's 51,200, and some 300 moves. */
  evacuationHistoryEventsMax: 4_000,
  /** Copies of one move, each after a runner or a link was lost: a runner that dies as often is broken. */
  migrationAttemptCountMax: 21,
  /** A move's history stays far from Temporal's 51,200; the page in its UI stays readable. */
  migrationHistoryEventsMax: 150,
} as const;

/** Times that the protocol and the workflows agree on, milliseconds. */
export const timing = {
  workflowTaskTimeoutMs: 2_000,
  heartbeatTimeoutMs: 3_000,
  /** How often a long activity reports; three may be lost before the timeout. */
  heartbeatEveryMs: 900,
  /**
   * A session that no attempt of its activity attends for so long ends itself by the ledger's rules
   * (before Quiesced: Abort, the VM goes on): longer than a restart of Temporal or of a worker.
   */
  sessionUnattendedMsMax: 30_000,
  /** A task that no runner fetches for so long: host unreachable. A runner restarts in 8 s. */
  hostSilentMsMax: 20_000,
  /**
   * Both sides begin to compare so long after the start: a guest that has just arrived faults on every
   * page that it touches, and a core that it has to share then is seen from outside.
   */
  exactnessCheckAfterMs: 500,
  /** Settle waits for the check of the images this long; then the outcome says unverified. */
  exactnessCheckMsMax: 60_000,
  /** A move waits so long for a target that is away: cut off, or with a runner that is not back. */
  linkAwayMsMax: 90_000,
  /** OWNERSHIP: hosts may propose Commit or Abort themselves after this long in the blackout. */
  blackoutSelfDecisionMs: 2_000,
  leaseTtlMs: 12_000,
  leaseRenewEveryMs: 2_000,
  /** Clocks may differ by this part in rate. */
  leaseClockRho: 0.01,
  leaseMarginMs: 1_000,
  /** A host that is silent for longer is looked at: three of its renewals did not come. */
  failoverSilentMsMin: 6_000,
  /** Between two looks at silent hosts, and two proposals of a failover. */
  failoverLookEveryMs: 500,
} as const;
