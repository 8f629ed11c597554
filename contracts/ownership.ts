/**
 * Ownership of VMs: the ledger's entry, the events that change it, and the records that hosts sign.
 * The rules are those of docs/ownership.md (model-checked); this file only gives them names.
 */
import type { HostName, Identity, Incarnation, MigrationId, VmName } from './identity.ts';
import type { HostFacts, VmSpec } from './runner.ts';

/** (siteEpoch, hostEpoch), compared lexicographically. One site in this version: siteEpoch is 1. */
export interface Token {
  readonly siteEpoch: number;
  readonly hostEpoch: number;
}
export const compareTokens = (a: Token, b: Token): number =>
  a.siteEpoch - b.siteEpoch || a.hostEpoch - b.hostEpoch;

/** What source (Quiesced) and target (Ready) attest; both must be equal for a Commit. */
export interface TransferRecord {
  readonly version: 1;
  readonly migration: MigrationId;
  readonly epoch: number;
  /** Multiset digest over (page number, blake3 of the page), hex. */
  readonly digest: string;
  /** Digest over the list of pages that post-copy will bring, hex; '' for pre-copy. */
  readonly missingDigest: string;
  readonly missingPageCount: number;
  /** Writes sent to (applied by) the target's disk endpoint, one number a disk in spec order. */
  readonly ioSequence: readonly number[];
  /** Ed25519 over the canonical JSON of the fields above, by the host's certificate key, base64. */
  readonly signature: string;
}

export type VmPhase = 'absent' | 'owned' | 'preparing' | 'unsettled';

/** How a migration id ended; it never changes once set (P5). */
export type MigrationEnd = 'committed' | 'aborted' | 'reverted';

/** The ledger's entry of one VM. `epoch` is the hostEpoch of the token. */
export interface VmEntry {
  readonly version: 1;
  readonly vm: VmName;
  readonly phase: VmPhase;
  readonly epoch: number;
  readonly owner: HostName | null;
  /** Owner before the last Commit, Revert or Failover. */
  readonly previous: HostName | null;
  /** Open migration (preparing, unsettled), else the last one. */
  readonly migration: MigrationId | null;
  readonly target: HostName | null;
  /** Epoch of the last recorded start; an image starts only if its stamp equals it. */
  readonly lastStarted: number;
  /** The one before, so that Declined can take a start back. */
  readonly startedBefore: number;
  readonly startedBy: Incarnation | null;
  readonly diskHolder: HostName;
  readonly quiesced: TransferRecord | null;
  readonly ready: TransferRecord | null;
  readonly postCopyAllowed: boolean;
  /** The target may propose Commit as soon as both records are in (given with Prepare). */
  readonly commitDelegated: boolean;
  /** Desired state: a stopped VM is owned, but nobody runs it. */
  readonly desired: 'running' | 'stopped';
  readonly spec: VmSpec;
  /** Why the entry is as it is: the event that made it, and by whom. */
  readonly cause: string;
  readonly changedAtMs: number;
}

interface OfVm {
  readonly vm: VmName;
}
interface OfMigration extends OfVm {
  readonly migration: MigrationId;
  /** Epoch that the proposer believes in; a different one is refused. */
  readonly epoch: number;
}
interface OfEpoch extends OfVm {
  readonly epoch: number;
}

export type LedgerEvent =
  | ({ readonly kind: 'create'; readonly host: HostName; readonly spec: VmSpec } & OfVm)
  | ({ readonly kind: 'delete' } & OfEpoch)
  | ({ readonly kind: 'desire'; readonly desired: 'running' | 'stopped' } & OfEpoch)
  | ({
      readonly kind: 'prepare';
      readonly target: HostName;
      readonly postCopyAllowed: boolean;
      readonly commitDelegated: boolean;
    } & OfMigration)
  | ({ readonly kind: 'quiesced'; readonly record: TransferRecord } & OfMigration)
  | ({ readonly kind: 'ready'; readonly record: TransferRecord } & OfMigration)
  | ({ readonly kind: 'commit' } & OfMigration)
  | ({ readonly kind: 'abort'; readonly reason: string } & OfMigration)
  | ({
      readonly kind: 'started';
      readonly incarnation: Incarnation;
      /** Stamp of the image that will run; null for a cold start. */
      readonly imageStamp: number | null;
    } & OfEpoch)
  | ({ readonly kind: 'revert'; readonly reason: string } & OfMigration)
  | ({ readonly kind: 'declined'; readonly incarnation: Incarnation; readonly signature: string } & OfMigration)
  | ({
      readonly kind: 'settle';
      /** Pages the target still misses; has to be 0 when Quiesced listed any (post-copy). */
      readonly missingPageCount?: number;
    } & OfMigration)
  | ({
      readonly kind: 'restart';
      readonly incarnation: Incarnation;
      /** How its VMM ended, for people. */
      readonly reason?: string;
    } & OfEpoch)
  | ({ readonly kind: 'failover'; readonly to: HostName; readonly fenceProof: string | null } & OfEpoch)
  | ({ readonly kind: 'renew' } & OfEpoch)
  | { readonly kind: 'join-host'; readonly facts: HostFacts; readonly publicKeyPem: string }
  | { readonly kind: 'cordon-host'; readonly host: HostName; readonly cordoned: boolean };

export type LedgerEventKind = LedgerEvent['kind'];

/** The ledger's entry of one host. */
export interface HostEntry {
  readonly version: 1;
  readonly facts: HostFacts;
  /** Ed25519 public key (SPKI PEM) that checks this host's records. */
  readonly publicKeyPem: string;
  readonly cordoned: boolean;
  readonly joinedAtMs: number;
  readonly changedAtMs: number;
}

/** A host as the ledger answers it: its entry, and whether its runner is heard from. */
export interface HostView extends HostEntry {
  /**
   * Since its runner last proposed anything, which it does every timing.leaseRenewEveryMs, or since
   * the ledger's process started, if that is later; by the ledger's steady clock, ms.
   */
  readonly silentForMs: number;
}

/** Why the ledger refused; `retry` means that a later state may accept the same event. */
export interface Refusal {
  readonly accepted: false;
  readonly code: 'ownership/refused' | 'ownership/role' | 'ownership/lease' | 'migration/open'
    | 'vm/unknown' | 'vm/exists' | 'host/unknown' | 'host/cordoned' | 'migration/same-host'
    | 'input/invalid';
  readonly reason: string;
  readonly entry: VmEntry | null;
}
/**
 * `changed` is false for a repeat, which does nothing. `index` is the log position that decided.
 */
export interface Acceptance {
  readonly accepted: true;
  readonly changed: boolean;
  readonly index: number;
  readonly entry: VmEntry | null;
  /** Of a renewal: how long the lease is, from the moment at which the host asked for it. */
  readonly leaseTtlMs?: number;
}
export type Verdict = Acceptance | Refusal;

/** The part of AbortSignal that contracts may name without the DOM library. */
export interface StopSignal {
  readonly aborted: boolean;
  addEventListener(type: 'abort', listener: () => void): void;
}

/** What processes use; the one-member log is behind it today, replicated groups later. */
export interface Ledger {
  /**
   * Proposes events in order and answers once they are durable; the first refusal stops the batch.
   * Throws CodedError `ownership/unreachable` when no answer came: the events may have happened.
   */
  propose(events: readonly LedgerEvent[]): Promise<readonly Verdict[]>;
  /** Linearizable read; null for a VM that never was or is deleted. */
  readVm(vm: VmName): Promise<VmEntry | null>;
  listVms(): Promise<readonly VmEntry[]>;
  listHosts(): Promise<readonly HostView[]>;
  migrationEnd(migration: MigrationId): Promise<MigrationEnd | null>;
  /** Follows the entry of a VM: first the present one, then each change, until aborted. */
  watchVm(vm: VmName, signal: StopSignal): AsyncIterable<VmEntry | null>;
  close(): Promise<void>;
}

/** Kept by the ledger about who proposed what. */
export interface LedgerLogLine {
  readonly index: number;
  readonly atMs: number;
  readonly proposer: Identity;
  readonly event: LedgerEvent;
}
