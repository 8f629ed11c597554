/** What the benchmark asks of an engine; everything measured the same way is measured outside. */
import type { LabHost } from '../network/plan.ts';

/** Engines by name; `direct` is the product, the others are QEMU's own in fair settings. */
export const engineNames = [
  'direct', 'qemu', 'qemu-multifd', 'qemu-multifd-zstd', 'qemu-postcopy',
] as const;
export type EngineName = (typeof engineNames)[number];
export const isEngineName = (text: string): text is EngineName =>
  (engineNames as readonly string[]).includes(text);

/** Environment variable by which a process in a host is known to belong to one engine. */
export const engineVariable = 'NOVACRON_BENCH_ENGINE';

/** The guest that every engine gets. */
export interface GuestOrder {
  readonly memoryBytes: number;
  readonly vcpuCount: number;
  /** Address in CIDR form on the VM segment, and the card's address. */
  readonly address: string;
  readonly macAddress: string;
  /** Kernel command line with the guest's load. */
  readonly commandLine: string;
  /** Size of a data disk; 0 for a guest without one. */
  readonly diskBytes: number;
  /** What that disk is made of; absent: an empty raw one. */
  readonly disk?: { readonly format: 'raw' | 'qcow2'; readonly sourceImage: string | null };
}

/** What a benchmark does while a moved guest is held at Started: what it answers is shown. */
export type AtStarted = (place: {
  readonly source: LabHost; readonly target: LabHost; readonly vm: string;
}) => Promise<Readonly<Record<string, unknown>>>;

/**
 * Parts of `totalMs`, ms, cut at the same events for every engine; they sum to it.
 *   connectMs   start of the transfer until bytes of the VM may flow (QEMU: MIGRATION setup to
 *               active; direct: TCP, TLS handshakes, both clocks compared)
 *   diskMs      direct: disks brought in sync; QEMU: 0
 *   memoryMs    until the source's STOP event
 *   downtimeMs  STOP to the target's RESUME event
 *   closingMs   RESUME until completed at both ends; what a post-copy still sends is in it
 */
export interface TotalPartsMs {
  readonly connectMs: number;
  readonly diskMs: number;
  readonly memoryMs: number;
  readonly downtimeMs: number;
  readonly closingMs: number;
}

/** One move as the engine saw it; stamps of events are on the machine's wall clock. */
export type MoveReport =
  | {
      readonly outcome: 'completed';
      /** Start of the transfer to completed at both ends, ms. */
      readonly totalMs: number;
      /** Null when a mark is missing. */
      readonly totalPartsMs: TotalPartsMs | null;
      /** STOP event at the source to RESUME event at the target, ms. */
      readonly downtimeMs: number;
      /** That STOP, ms since 1970. */
      readonly beganAtMs: number;
      /** Passes over memory, the last one included; null when the engine does not tell. */
      readonly rounds: number | null;
      /** Only for show: what the engine itself adds (parts of the downtime, its own byte count). */
      readonly details: Readonly<Record<string, unknown>>;
    }
  | { readonly outcome: 'failed' | 'timeout'; readonly reason: string };

/** One engine with its guest, which goes to and fro between host 1 and host 2. */
export interface BenchEngine {
  readonly name: EngineName;
  /**
   * Value of `engineVariable` in the environment of this engine's own VMMs; null: all processes
   * of the hosts that carry none are its own (its runners, guards and VMMs).
   */
  readonly mark: string | null;
  /** A fresh guest on host 1; the one before is gone. */
  boot(): Promise<void>;
  /** Stands still while it is another engine's turn; `wake` lets it go on. */
  rest(): Promise<void>;
  wake(): Promise<void>;
  /** Host that the guest runs on. */
  host(): LabHost;
  /** Moves the guest to the other host. A guest that did not arrive is of no further use. */
  move(limitMs: number): Promise<MoveReport>;
  /** Ends the guest and everything that was started for it. */
  discard(): Promise<void>;
}
