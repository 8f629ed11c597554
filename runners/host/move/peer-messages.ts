/**
 * Messages between the two runners of a move, over their control connection. Page data, device
 * state and disk blocks have connections of their own (native/session); here go only the few
 * words of the hand-over. Parsed at the edge; every message has a version.
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

export const peerMessage = z.discriminatedUnion('kind', [
  /** Source: opens the conversation about one migration; must be the first message. */
  z.strictObject({ version, kind: z.literal('hello'), migration, epoch }),
  z.strictObject({ version, kind: z.literal('welcome') }),
  z.strictObject({ version, kind: z.literal('ping'), sentMs: clock }),
  z.strictObject({ version, kind: z.literal('pong'), sentMs: clock, nowMs: clock }),
  /** Source: disk mirror of all disks drained and detached; the target may flush for good. */
  z.strictObject({
    version, kind: z.literal('disks-drained'),
    /** What the mirrors wrote, a sum a disk; older sources do not say it. */
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
