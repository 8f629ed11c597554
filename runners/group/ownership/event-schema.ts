/**
 * Parser of ledger events that come from outside. Strict: a field that this version does not know
 * could change the meaning of an event, so it is refused instead of dropped.
 */
import { z } from 'zod';
import {
  isHostName, isIncarnation, isVmName, parseMigrationId,
} from '../../../contracts/identity.ts';
import type { HostName, Incarnation, MigrationId, VmName } from '../../../contracts/identity.ts';
import { limits } from '../../../contracts/limits.ts';
import type { LedgerEvent } from '../../../contracts/ownership.ts';
import { hostFacts, vmSpec } from '../../../contracts/runner.ts';
import { ledgerBounds } from './state.ts';

/** Events of one proposal; the longest real batch (ready, commit, started) has three. */
export const eventsPerProposalMax = 16;

const vm = z.custom<VmName>((value) => typeof value === 'string' && isVmName(value), 'a VM name');
const host = z.custom<HostName>(
  (value) => typeof value === 'string' && isHostName(value), 'a host name');
const migration = z.custom<MigrationId>(
  (value) => typeof value === 'string' && parseMigrationId(value) !== null, 'a migration id');
const incarnation = z.custom<Incarnation>(
  (value) => typeof value === 'string' && isIncarnation(value), '32 hex digits');
const count = z.int().min(0);
const epoch = count;
const reason = z.string().max(ledgerBounds.reasonLengthMax);
const hexDigest = z.string().max(256);
const signature = z.string().max(256);

const transferRecord = z.strictObject({
  version: z.literal(1), migration, epoch, digest: hexDigest, missingDigest: hexDigest,
  missingPageCount: count, ioSequence: z.array(count).max(limits.diskCountMax), signature,
});
const ofMove = { vm, migration, epoch };
const ofEpoch = { vm, epoch };

const ledgerEvent = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('create'), vm, host, spec: vmSpec }),
  z.strictObject({ kind: z.literal('delete'), ...ofEpoch }),
  z.strictObject({
    kind: z.literal('desire'), ...ofEpoch, desired: z.enum(['running', 'stopped']),
  }),
  z.strictObject({
    kind: z.literal('prepare'), ...ofMove, target: host, postCopyAllowed: z.boolean(),
    commitDelegated: z.boolean(),
  }),
  z.strictObject({ kind: z.literal('quiesced'), ...ofMove, record: transferRecord }),
  z.strictObject({ kind: z.literal('ready'), ...ofMove, record: transferRecord }),
  z.strictObject({ kind: z.literal('commit'), ...ofMove }),
  z.strictObject({ kind: z.literal('abort'), ...ofMove, reason }),
  z.strictObject({
    kind: z.literal('started'), ...ofEpoch, incarnation, imageStamp: count.nullable(),
  }),
  z.strictObject({ kind: z.literal('revert'), ...ofMove, reason }),
  z.strictObject({ kind: z.literal('declined'), ...ofMove, incarnation, signature }),
  z.strictObject({ kind: z.literal('settle'), ...ofMove, missingPageCount: count.optional() }),
  z.strictObject({
    kind: z.literal('restart'), ...ofEpoch, incarnation, reason: reason.optional(),
  }),
  z.strictObject({
    kind: z.literal('failover'), ...ofEpoch, to: host, fenceProof: reason.nullable(),
  }),
  z.strictObject({ kind: z.literal('renew'), ...ofEpoch }),
  z.strictObject({
    kind: z.literal('join-host'), facts: hostFacts, publicKeyPem: z.string().max(2_048),
  }),
  z.strictObject({ kind: z.literal('cordon-host'), host, cordoned: z.boolean() }),
]);

const proposal = z.array(ledgerEvent).min(1).max(eventsPerProposalMax);

/** Events of one proposal, or what is wrong with them in one line. */
export function parseEvents(value: unknown): readonly LedgerEvent[] | { readonly problem: string } {
  const parsed = proposal.safeParse(value);
  if (parsed.success) return parsed.data as readonly LedgerEvent[];
  const [issue] = parsed.error.issues;
  return { problem: `events.${issue?.path.join('.')}: ${issue?.message}`.slice(0, 300) };
}
