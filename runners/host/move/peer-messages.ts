/**
 * Messages between the two runners of a move, over their control connection. Page data, device
 * state and disk blocks have connections of their own (native/session); here go only the few
 * words of the hand-over. Parsed at the edge; every message has a version. What a later runner can
 * say besides is agreed on in hello and welcome: two of different versions agree on less.
 */
import { z } from 'zod';
import { isFailureCode, type FailureCode } from '../../../contracts/failures.ts';
import { isIncarnation, parseMigrationId, type MigrationId } from '../../../contracts/identity.ts';
import type { TransferRecord } from '../../../contracts/ownership.ts';

const version = z.literal(1);
const clock = z.number().min(0);
const migration = z
  .string()
  .refine((text) => parseMigrationId(text) !== null, 'a migration id')
  .transform((text) => text as MigrationId);
const epoch = z.int().min(1);

const record = z
  .strictObject({
    version,
    migration,
    epoch,
    digest: z.string().max(128),
    missingDigest: z.string().max(128),
    missingPageCount: z.int().min(0),
    ioSequence: z.array(z.int().min(0)).max(64),
    signature: z.string().max(256),
  })
  .transform((value): TransferRecord => value);

/** Marks of the target on its own clock, ms since the epoch. */
export const targetMarks = z.strictObject({
  memoryInMs: clock,
  deviceInMs: clock,
  flushedMs: clock,
  committedMs: clock,
  gateRaisedMs: clock,
  startedMs: clock,
  resumeEventMs: clock,
});
export type TargetMarks = z.infer<typeof targetMarks>;

/** What was added to the first version, each agreed on by itself. */
export const peerFeatures = ['disk-digests'] as const;
export type PeerFeature = (typeof peerFeatures)[number];
/** Names that are not known here are for later runners. */
const features = z.array(z.string().max(32)).max(64);

export const peerMessage = z.discriminatedUnion('kind', [
  /** Source: opens the conversation about one migration; must be the first message. */
  z.object({
    version, kind: z.literal('hello'), migration, epoch,
    /** Absent from runners of the first version, which close on a hello that has it. */
    features: features.optional(),
  }),
  /** Target: with features only to a source that named its own. */
  z.object({ version, kind: z.literal('welcome'), features: features.optional() }),
  z.strictObject({ version, kind: z.literal('ping'), sentMs: clock }),
  z.strictObject({ version, kind: z.literal('pong'), sentMs: clock, nowMs: clock }),
  /** Source: disk mirror of all disks drained and detached; the target may flush for good. */
  z.strictObject({
    version, kind: z.literal('disks-drained'),
    /** What the mirrors wrote, a sum a disk; feature `disk-digests`. */
    diskDigests: z.array(z.string().regex(/^[0-9a-f]{32}$/)).max(64).optional(),
  }),
  /** Source: Quiesced is in the ledger with this record. */
  z.strictObject({ version, kind: z.literal('quiesced'), record }),
  /** Target: Started is in the ledger and RESUME was seen. */
  z.strictObject({
    version,
    kind: z.literal('running'),
    marks: targetMarks,
    epoch,
    incarnation: z.string().refine(isIncarnation, 'an incarnation'),
  }),
  /** Target: it can't go on; `started` says whether Started may be in the ledger. */
  z.strictObject({
    version,
    kind: z.literal('gave-up'),
    code: z.string().refine(isFailureCode, 'a failure code').transform((c) => c as FailureCode),
    detail: z.string().max(2000),
  }),
]);
export type PeerMessage = z.infer<typeof peerMessage>;

/** A message without what the peer did not name among its features. Pure. */
export function saidTo(message: PeerMessage, agreed: ReadonlySet<string>): PeerMessage {
  if (message.kind !== 'disks-drained' || agreed.has('disk-digests' satisfies PeerFeature)) {
    return message;
  }
  return { version: message.version, kind: message.kind };
}
