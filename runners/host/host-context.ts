/** What every part of the host runner works with; made once in main.ts. */
import type { KeyObject } from 'node:crypto';
import type { Logger } from 'pino';
import type { HostName, VmName } from '../../contracts/identity.ts';
import type { Ledger } from '../../contracts/ownership.ts';
import type { HostFacts } from '../../contracts/runner.ts';
import type { RevocationList } from '../../payloads/revocation.ts';
import type { HostConfig } from '../config.ts';
import type { FaultPoints } from '../fault-points.ts';
import type { LaneListener, MemoryEngine } from '../data-plane/sessions.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { MoveNote, MoveWorld, VmGates } from './move/ports.ts';

export interface HostContext {
  readonly config: HostConfig;
  readonly host: HostName;
  readonly facts: HostFacts;
  readonly hypervisor: Hypervisor;
  readonly ledger: Ledger;
  readonly engine: MemoryEngine;
  readonly lanes: LaneListener;
  readonly revoked: RevocationList;
  /** Ed25519 key of this host's certificate; signs what the host attests. */
  readonly signingKey: KeyObject;
  readonly world: MoveWorld;
  readonly log: Logger;
  /** Nothing is ever armed there outside of a lab. */
  readonly points: FaultPoints;
  gatesOf(vm: VmName): Promise<VmGates>;
  /** Gates of a VM that left: the NIC gate is shut and forgotten, the epoch stays. */
  forgetGates(vm: VmName): Promise<void>;
  /** How far this host's half of a move was, null when none is noted. */
  readNote(vm: VmName): Promise<MoveNote | null>;
  /** Durable: an operator stopped the VM on this host past the ledger; its next start ends it. */
  noteEnded(vm: VmName, ended: boolean): Promise<void>;
  wasEnded(vm: VmName): Promise<boolean>;
}
