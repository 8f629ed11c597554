/**
 * What the commands need from outside, as ports: moves and life cycle (Temporal), ownership (the
 * ledger). `connected-backend.ts` holds the real ones; tests hand in their own.
 */
import type { EvacuateHostInput, EvacuationCommand, EvacuationStatus,
} from '../contracts/evacuation.ts';
import type { CheckProgress } from '../contracts/exactness.ts';
import type { HostName, MigrationId, VmName } from '../contracts/identity.ts';
import type { MigrateVmInput, MigrationOutcome, MigrationStatus, SessionCommand,
} from '../contracts/migration.ts';
import type { Ledger } from '../contracts/ownership.ts';
import type { EvacuationView } from '../payloads/evacuation-client.ts';
import type { LifecycleRequest } from '../payloads/lifecycle-client.ts';
import type { LifecycleOutcome } from '../contracts/vm-lifecycle.ts';
import type { OperatorConfig } from './operator-config.ts';

/** A move in a list, from Temporal's visibility store (seconds behind, hence no figures). */
export interface MigrationRow {
  readonly migration: string;
  readonly vm: string;
  readonly source: string;
  readonly target: string;
  readonly phase: string;
  readonly outcome: string;
  readonly startedAtMs: number;
  readonly closedAtMs: number | null;
}

/** A move as it is now. */
export interface MoveView {
  /** Progress inside is that of the newest heartbeat. */
  readonly status: MigrationStatus;
  /** Of the newest heartbeat while the target compares its image. */
  readonly check: CheckProgress | null;
  /** Attempts of the copying step; above 1 it was taken up again. */
  readonly attempt: number;
  /** Failure of a step that is being repeated. */
  readonly lastFailure: string | null;
}

/** Temporal, as far as commands use it. */
export interface Workflows {
  /** `target` is that of the run that the request stands for, null where it can't be told. */
  startMove(input: MigrateVmInput): Promise<{
    readonly migration: MigrationId; readonly runId: string | null; readonly target: string | null;
  }>;
  viewMove(migration: MigrationId): Promise<MoveView>;
  commandMove(input: {
    readonly migration: MigrationId; readonly command: SessionCommand;
  }): Promise<MigrationStatus>;
  /** Waits for the end. */
  outcomeOf(migration: MigrationId): Promise<MigrationOutcome>;
  /** `joined`: the same request runs already. */
  startEvacuation(input: EvacuateHostInput): Promise<{
    readonly runId: string | null; readonly joined: boolean;
  }>;
  viewEvacuation(host: HostName): Promise<EvacuationView>;
  commandEvacuation(input: {
    readonly host: HostName; readonly command: EvacuationCommand;
  }): Promise<EvacuationStatus>;
  listMoves(input: {
    readonly vm: VmName | null; readonly openOnly: boolean; readonly countMax: number;
  }): Promise<readonly MigrationRow[]>;
  runLifecycle(request: LifecycleRequest): Promise<{
    readonly workflowId: string; readonly outcome: LifecycleOutcome;
  }>;
  /** Page of a workflow in Temporal's UI; null where the configuration names none. */
  workflowUrl(input: { readonly workflowId: string; readonly runId: string | null }): string | null;
}


/** What commands may do with the ledger. */
export type LedgerView = Pick<Ledger,
  'propose' | 'readVm' | 'listVms' | 'listHosts' | 'migrationEnd' | 'close'>;

/** Everything behind a command; parts connect when first asked for. */
export interface Backend {
  config(): Promise<OperatorConfig>;
  workflows(): Promise<Workflows>;
  ledger(): Promise<LedgerView>;
  close(): Promise<void>;
}
