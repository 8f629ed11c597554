/**
 * Client of the ledger, for runners and for commands: one connection, requests pipelined. Decides
 * what a lost connection means. Long-lived (`connectLedger`): it is made again with backoff, reads
 * are repeated, an event that may have been sent is reported as `ownership/unreachable`, watches go
 * on with the present entry. Short-lived (`openLedger`): it is the end, with its reason.
 */
import type { TLSSocket } from 'node:tls';
import { CodedError } from '../contracts/failures.ts';
import type {
  HostView, Ledger, MigrationEnd, Verdict, VmEntry,
} from '../contracts/ownership.ts';
import { EntryQueue } from './entry-queue.ts';
import { FrameDecoder, encodeFrame } from './json-frames.ts';
import { errorOf, parseServerMessage, wireVersion } from './ledger-wire.ts';
import type { ClientRequest, ServerMessage } from './ledger-wire.ts';
import type { RevocationList } from './revocation.ts';
import { connectTls, endWhenRevoked } from './tls.ts';
import type { TlsMaterial } from './tls.ts';

/** An answer takes a millisecond; this long means that the ledger or the way to it is gone. */
const requestTimeoutMsDefault = 5_000;
const connectTimeoutMs = 3_000;
const backoffFirstMs = 50;
const backoffMaxMs = 1_000;
const keepAliveAfterMs = 5_000;

/** What this client tells a log; a pino logger fits. */
export interface ClientLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface LedgerConnection {
  readonly address: string;
  readonly port: number;
  readonly tls: TlsMaterial;
  readonly revoked: RevocationList;
  /** Name in the ledger's certificate; any ledger of the installation when not given. */
  readonly ledgerName?: string;
  readonly localAddress?: string;
  readonly logger?: ClientLog;
  readonly requestTimeoutMs?: number;
}

interface Pending {
  readonly request: ClientRequest;
  readonly items: unknown[];
  readonly resolve: (items: unknown[]) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
  /** A proposal that was written may have happened; a read may be asked again. */
  sent: boolean;
}
interface Watch {
  readonly vm: string;
  readonly queue: EntryQueue;
  lastText: string | null;
}

const ledgerOf = (client: LedgerClient): Ledger => ({
  propose: async (events) =>
    await client.ask({ op: 'propose', events }) as readonly Verdict[],
  readVm: async (vm) => (await client.ask({ op: 'read-vm', vm }))[0] as VmEntry | null,
  listVms: async () => await client.ask({ op: 'list-vms' }) as VmEntry[],
  listHosts: async () => await client.ask({ op: 'list-hosts' }) as HostView[],
  migrationEnd: async (migration) =>
    (await client.ask({ op: 'migration-end', migration }))[0] as MigrationEnd | null,
  watchVm: (vm, signal) => client.watch(vm, (onEnd) => new EntryQueue(signal, onEnd)),
  close: async () => client.close(),
});

/**
 * Connects in the background and for as long as it is not closed; each request fails with
 * `ownership/unreachable` when no answer came in `requestTimeoutMs` (default 5 s).
 */
export function connectLedger(connection: LedgerConnection): Ledger {
  const client = new LedgerClient(connection);
  void client.stayConnected();
  return ledgerOf(client);
}

/**
 * Connects once, for a few questions: a ledger that is away or refuses us is an error now, and a
 * lost connection fails every request from then on. Failures: `ownership/unreachable`,
 * `link/refused`, `ownership/role`, `certificate/revoked`; a refused proposal is a verdict.
 */
export async function openLedger(connection: LedgerConnection): Promise<Ledger> {
  const client = new LedgerClient(connection);
  await client.connectOnce();
  return ledgerOf(client);
}

class LedgerClient {
  private readonly connection: LedgerConnection;
  private readonly pending = new Map<number, Pending>();
  private readonly watches = new Map<number, Watch>();
  private socket: TLSSocket | null = null;
  private nextId = 1;
  /** Why nothing can be asked any more; null while it can. */
  private ended: CodedError | null = null;
  private lastProblem: Error | null = null;
  private wakeFromBackoff: () => void = () => {};

  constructor(connection: LedgerConnection) {
    this.connection = connection;
  }

  private get where(): string {
    return `${this.connection.address}:${this.connection.port}`;
  }

  private unreachable(why: string): CodedError {
    return new CodedError('ownership/unreachable', `${this.where}: ${why}`);
  }

  /** Sends a request now or when the connection is there; answers its items. */
  ask(request: ClientRequest): Promise<unknown[]> {
    if (this.ended !== null) return Promise.reject(this.ended);
    const id = this.nextId;
    this.nextId += 1;
    const { promise, resolve, reject } = Promise.withResolvers<unknown[]>();
    const afterMs = this.connection.requestTimeoutMs ?? requestTimeoutMsDefault;
    const timer = setTimeout(() => {
      this.pending.delete(id);
      reject(this.unreachable(this.socket === null
        ? this.lastProblem?.message ?? 'not connected yet' : `no answer in ${afterMs} ms`));
    }, afterMs);
    const one: Pending = { request, items: [], resolve, reject, timer, sent: false };
    this.pending.set(id, one);
    if (this.socket !== null) this.sendPending(this.socket, id, one);
    return promise;
  }

  watch(vm: string, makeQueue: (onEnd: () => void) => EntryQueue): EntryQueue {
    const id = this.nextId;
    this.nextId += 1;
    const queue = makeQueue(() => {
      const wasThere = this.watches.delete(id);
      if (wasThere && this.socket !== null) this.send(this.socket, id, { op: 'stop' });
    });
    if (this.ended !== null) queue.end();
    if (queue.isEnded) return queue;
    this.watches.set(id, { vm, queue, lastText: null });
    if (this.socket !== null) this.send(this.socket, id, { op: 'watch-vm', vm });
    return queue;
  }

  private sendPending(socket: TLSSocket, id: number, one: Pending): void {
    try {
      this.send(socket, id, one.request);
      one.sent = true;
    } catch (error) {
      const { message } = error as Error;
      this.finish(id, one)?.reject(new CodedError('input/invalid', message, error));
    }
  }

  private send(socket: TLSSocket, id: number, request: ClientRequest): void {
    socket.write(encodeFrame({ version: wireVersion, id, ...request }));
  }

  private finish(id: number, one: Pending): Pending | null {
    clearTimeout(one.timer);
    return this.pending.delete(id) ? one : null;
  }

  /** One connection, whose end is the end of this client; throws when there is none to be had. */
  async connectOnce(): Promise<void> {
    let socket: TLSSocket;
    try {
      socket = await this.connect();
    } catch (error) {
      const silent = error instanceof CodedError
        && (error.code === 'host/unreachable' || error.code === 'link/lost');
      throw silent ? new CodedError('ownership/unreachable', error.detail, error) : error;
    }
    this.serve(socket, () => this.end(this.lastProblem instanceof CodedError
      ? this.lastProblem : this.unreachable('it closed the connection, as it does to '
        + 'certificates that are revoked, expired or of another role')));
  }

  /** Connects again and again until it is closed. */
  async stayConnected(): Promise<void> {
    let backoffMs = backoffFirstMs;
    while (this.ended === null) {
      try {
        const { promise, resolve } = Promise.withResolvers<void>();
        const socket = await this.connect();
        if (this.isEnded) return void socket.destroy();
        this.serve(socket, resolve);
        backoffMs = backoffFirstMs;
        await promise;
      } catch (error) {
        this.lastProblem = error as Error;
        this.connection.logger?.warn({ err: error, ledger: this.where }, 'no way to the ledger');
      }
      if (this.isEnded) return;
      // Spread, so that the clients of a restarted ledger do not come all at once.
      await this.pause(backoffMs * (0.5 + Math.random() / 2));
      backoffMs = Math.min(backoffMs * 2, backoffMaxMs);
    }
  }

  private pause(forMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, forMs);
      this.wakeFromBackoff = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  private connect(): Promise<TLSSocket> {
    const { address, port, tls, revoked, ledgerName, localAddress } = this.connection;
    return connectTls({
      host: address, port, material: tls, revoked, timeoutMs: connectTimeoutMs,
      expected: [{ role: 'ledger', ...(ledgerName === undefined ? {} : { name: ledgerName }) }],
      ...(localAddress === undefined ? {} : { localAddress }),
    });
  }

  private serve(socket: TLSSocket, onClosed: () => void): void {
    const { revoked, logger } = this.connection;
    const decoder = new FrameDecoder();
    socket.setNoDelay(true);
    socket.setKeepAlive(true, keepAliveAfterMs);
    endWhenRevoked({ socket, revoked });
    socket.on('error', (error) => {
      this.lastProblem = error;
    });
    socket.on('data', (chunk) => {
      try {
        for (const value of decoder.push(chunk)) this.take(parseServerMessage(value));
      } catch (error) {
        socket.destroy(error as Error);
      }
    });
    socket.once('close', () => {
      if (this.socket === socket) this.lose();
      onClosed();
    });
    this.socket = socket;
    logger?.info({ ledger: this.where }, 'connected to the ledger');
    for (const [id, { vm }] of this.watches) this.send(socket, id, { op: 'watch-vm', vm });
    for (const [id, one] of this.pending) this.sendPending(socket, id, one);
  }

  private take(message: ServerMessage): void {
    const watch = this.watches.get(message.id);
    if (watch !== undefined) {
      if ('items' in message) for (const item of message.items) pushNew(watch, item);
      return;
    }
    const one = this.pending.get(message.id);
    if (one === undefined) return;
    if ('error' in message) {
      this.finish(message.id, one)?.reject(errorOf(message.error));
      return;
    }
    one.items.push(...message.items);
    if (!message.more) this.finish(message.id, one)?.resolve(one.items);
  }

  /** The connection is gone: proposals on their way are unknown, reads will be asked again. */
  private lose(): void {
    this.socket = null;
    for (const [id, one] of this.pending) {
      if (one.sent && one.request.op === 'propose') {
        this.finish(id, one)?.reject(
          this.unreachable('the connection broke; the events may have happened'));
      } else {
        one.items.length = 0;
        one.sent = false;
      }
    }
  }

  close(): void {
    this.end(this.unreachable('this client is closed'));
  }

  private get isEnded(): boolean {
    return this.ended !== null;
  }

  private end(reason: CodedError): void {
    if (this.ended !== null) return;
    this.ended = reason;
    for (const [id, one] of this.pending) this.finish(id, one)?.reject(reason);
    for (const { queue } of this.watches.values()) queue.end();
    this.socket?.end();
    this.socket?.destroySoon();
    this.socket = null;
    this.wakeFromBackoff();
  }
}

/** Pushes an entry unless it is the one pushed last: a subscription begins with the present. */
function pushNew(watch: Watch, item: unknown): void {
  const text = JSON.stringify(item);
  if (text === watch.lastText) return;
  watch.lastText = text;
  watch.queue.push(item as VmEntry | null);
}
