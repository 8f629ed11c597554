/**
 * A short-lived client of the ledger for commands: one connection, a few questions, the end. The
 * long-lived client of runners (reconnecting, watching) is runners/ledger-client; both speak its
 * wire: frames of `{version, id, op, …}` answered by `{version, id, items, more}` or `error`.
 */
import type { TLSSocket } from 'node:tls';
import { z } from 'zod';
import { CodedError, isFailureCode } from '../contracts/failures.ts';
import type { HostEntry, Ledger, MigrationEnd, Verdict, VmEntry } from '../contracts/ownership.ts';
import { encodeFrame, FrameDecoder } from './json-frames.ts';
import type { RevocationList } from './revocation.ts';
import { connectTls } from './tls.ts';
import type { TlsMaterial } from './tls.ts';

const wireVersion = 1;
/** A command waits this long for the ledger before it says that it does not answer. */
const answerTimeoutMs = 5_000;

const serverMessage = z.union([
  z.strictObject({ version: z.literal(wireVersion), id: z.int(), items: z.array(z.unknown()),
    more: z.boolean() }),
  z.strictObject({ version: z.literal(wireVersion), id: z.int(),
    error: z.strictObject({ code: z.string(), detail: z.string() }) }),
]);

interface Pending {
  readonly items: unknown[];
  readonly resolve: (items: unknown[]) => void;
  readonly reject: (error: Error) => void;
}

/** What commands may do with the ledger. */
export type LedgerView = Pick<Ledger,
  'propose' | 'readVm' | 'listVms' | 'listHosts' | 'migrationEnd' | 'close'>;

class Questions {
  readonly #socket: TLSSocket;
  readonly #where: string;
  readonly #decoder = new FrameDecoder();
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;

  constructor(socket: TLSSocket, where: string) {
    this.#socket = socket;
    this.#where = where;
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const message of this.#decoder.push(chunk)) this.#take(serverMessage.parse(message));
      } catch {
        this.#fail(new CodedError('link/refused',
          `${where}: the ledger speaks another version of the protocol`));
      }
    });
    socket.once('close', () => this.#fail(this.#silence('it closed the connection, as it does to '
      + 'certificates that are revoked, expired or of another role')));
  }

  #silence(why: string): CodedError {
    return new CodedError('ownership/unreachable', `${this.#where}: ${why}`);
  }

  #fail(error: CodedError): void {
    for (const one of this.#pending.values()) one.reject(error);
    this.#pending.clear();
    this.#socket.destroy();
  }

  #take(message: z.infer<typeof serverMessage>): void {
    const one = this.#pending.get(message.id);
    if (one === undefined) return;
    if ('error' in message) {
      const { code, detail } = message.error;
      one.reject(new CodedError(isFailureCode(code) ? code : 'internal', detail));
    } else {
      one.items.push(...message.items);
      if (message.more) return;
      one.resolve(one.items);
    }
    this.#pending.delete(message.id);
  }

  async ask(request: { readonly op: string } & Record<string, unknown>): Promise<unknown[]> {
    const id = this.#nextId;
    this.#nextId += 1;
    const { promise, resolve, reject } = Promise.withResolvers<unknown[]>();
    this.#pending.set(id, { items: [], resolve, reject });
    const timer = setTimeout(() => this.#fail(this.#silence(`no answer in ${answerTimeoutMs} ms`)),
      answerTimeoutMs);
    if (this.#socket.destroyed) this.#fail(this.#silence('the connection broke'));
    else this.#socket.write(encodeFrame({ version: wireVersion, id, ...request }));
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  }
}

/**
 * Connects as an operator. Failures: `ownership/unreachable`, `link/refused`, `ownership/role`,
 * `certificate/revoked`; a refused proposal is a verdict, not an error.
 */
export async function openLedgerView({ address, port, material, revoked }: {
  readonly address: string; readonly port: number; readonly material: TlsMaterial;
  readonly revoked: RevocationList;
}): Promise<LedgerView> {
  const where = `${address}:${port}`;
  let socket: TLSSocket;
  try {
    socket = await connectTls({ host: address, port, material, revoked,
      expected: [{ role: 'ledger' }], timeoutMs: answerTimeoutMs });
  } catch (error) {
    const silent = error instanceof CodedError
      && (error.code === 'host/unreachable' || error.code === 'link/lost');
    throw silent ? new CodedError('ownership/unreachable', error.detail, error) : error;
  }
  const questions = new Questions(socket, where);
  const first = async (request: Parameters<Questions['ask']>[0]): Promise<unknown> =>
    (await questions.ask(request))[0] ?? null;
  return {
    propose: async (events) => await questions.ask({ op: 'propose', events }) as Verdict[],
    readVm: async (vm) => await first({ op: 'read-vm', vm }) as VmEntry | null,
    listVms: async () => await questions.ask({ op: 'list-vms' }) as VmEntry[],
    listHosts: async () => await questions.ask({ op: 'list-hosts' }) as HostEntry[],
    migrationEnd: async (migration) =>
      await first({ op: 'migration-end', migration }) as MigrationEnd | null,
    close: async () => { socket.destroy(); },
  };
}
