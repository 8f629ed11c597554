/**
 * Messages between the ledger and its clients, each in one JSON frame (json-frames.ts).
 *
 *     client  {version, id, op, …}          id: a number of the client's choice, unique while open
 *     server  {version, id, items, more}    one or more; `more` false ends the answer
 *             {version, id, error: {code, detail}}
 *
 * Requests may be pipelined and are answered in any order. A watch answers the present entry, then
 * each change, with `more` true, until the client sends `stop`.
 */
import { z } from 'zod';
import { CodedError, isFailureCode } from '../contracts/failures.ts';

export const wireVersion = 1;
/** Items are packed into frames up to this size; the rest of the limit is for one large item. */
export const packedBytesMax = 64 * 1024;

const base = { version: z.literal(wireVersion), id: z.int().min(0) };
const name = z.string().max(200);

export const clientMessage = z.discriminatedUnion('op', [
  z.strictObject({ ...base, op: z.literal('propose'), events: z.unknown() }),
  z.strictObject({ ...base, op: z.literal('read-vm'), vm: name }),
  z.strictObject({ ...base, op: z.literal('list-vms') }),
  z.strictObject({ ...base, op: z.literal('list-hosts') }),
  z.strictObject({ ...base, op: z.literal('migration-end'), migration: name }),
  z.strictObject({ ...base, op: z.literal('watch-vm'), vm: name }),
  /** Ends the watch that was begun with this id; not answered. */
  z.strictObject({ ...base, op: z.literal('stop') }),
]);
export type ClientMessage = z.infer<typeof clientMessage>;
type WithoutEnvelope<T> = T extends unknown ? Omit<T, 'version' | 'id'> : never;
/** A request before it gets its version and id. */
export type ClientRequest = WithoutEnvelope<ClientMessage>;

const serverMessage = z.union([
  z.strictObject({ ...base, items: z.array(z.unknown()), more: z.boolean() }),
  z.strictObject({ ...base, error: z.strictObject({ code: z.string(), detail: z.string() }) }),
]);
export type ServerMessage = z.infer<typeof serverMessage>;

/** A message of the ledger; throws `link/refused` when it is none of this version. */
export function parseServerMessage(value: unknown): ServerMessage {
  const parsed = serverMessage.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new CodedError('link/refused', 'the ledger speaks another version of the protocol');
}

/** The error that an answer carries. */
export const errorOf = (
  { code, detail }: { readonly code: string; readonly detail: string },
): CodedError =>
  new CodedError(isFailureCode(code) ? code : 'internal', detail);
