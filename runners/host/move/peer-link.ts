/**
 * The control connection between source and target runner of a move: mutual TLS, JSON frames, a
 * ping both ways so that a stalled peer is noticed. It carries messages and says when it is gone;
 * what they mean is decided by the two halves of the move.
 */
import { once } from 'node:events';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import { CodedError, type FailureCode } from '../../../contracts/failures.ts';
import type { HostName, Identity } from '../../../contracts/identity.ts';
import { encodeFrame, FrameDecoder } from '../../../payloads/json-frames.ts';
import type { RevocationList } from '../../../payloads/revocation.ts';
import {
  authorizePeer, connectTls, endWhenRevoked, followMaterial, serverTlsOptions, type TlsMaterial,
} from '../../../payloads/tls.ts';
import { clockOffset, type ClockSample } from './downtime.ts';
import { peerFeatures, peerMessage, saidTo, type PeerMessage } from './peer-messages.ts';
import type { PeerConversation } from './ports.ts';

/** Set-up of a connection: TCP, TLS, welcome. */
const connectTimeoutMs = 5_000;
/** A peer that says nothing for this long counts as gone; pings go out three times as often. */
const silenceMsMax = 1_500;
/** Connections that have not said hello yet; more are dropped at once. */
const strangersMax = 64;
/** Pings for the clock comparison when a link opens. */
const clockSampleCount = 5;

type MessageListener = (message: PeerMessage) => void;

/** One open connection to a peer's runner. Messages that nobody listens for yet are kept. */
export class PeerLink implements PeerConversation {
  readonly #socket: TLSSocket;
  readonly #decoder = new FrameDecoder();
  readonly #waiting: PeerMessage[] = [];
  readonly #gone = Promise.withResolvers<Error>();
  readonly #pongs: ((sample: ClockSample) => void)[] = [];
  readonly #timer: NodeJS.Timeout;
  #agreed: ReadonlySet<string> = new Set();
  #listener: MessageListener | null = null;
  #heardAtMs = performance.now();
  #closed = false;

  constructor(socket: TLSSocket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => this.#end(error));
    socket.on('close', () => this.#end(new Error('the peer closed the connection')));
    this.#timer = setInterval(() => this.#beat(), silenceMsMax / 3);
    this.#timer.unref();
  }

  /** Resolves once, with the reason, when the link can't be used any more. */
  get gone(): Promise<Error> {
    return this.#gone.promise;
  }

  /** What the peer can be told beyond the first version; nothing before this. */
  agree(features: readonly string[]): void {
    this.#agreed = new Set(features);
  }

  send(message: PeerMessage): void {
    if (!this.#closed) this.#socket.write(encodeFrame(saidTo(message, this.#agreed)));
  }

  /** Hands over what arrived so far and everything later. One listener at a time. */
  listen(listener: MessageListener): void {
    this.#listener = listener;
    for (const message of this.#waiting.splice(0)) listener(message);
  }

  /** The next message alone; what follows it is kept for a later listener. */
  next(): Promise<PeerMessage> {
    const kept = this.#waiting.shift();
    if (kept !== undefined) return Promise.resolve(kept);
    const arrival = Promise.withResolvers<PeerMessage>();
    this.#listener = (message) => {
      this.#listener = null;
      arrival.resolve(message);
    };
    return arrival.promise;
  }

  /** Peer's clock minus ours, ms, with its error. */
  async compareClocks(): Promise<{ readonly offsetMs: number; readonly errorMs: number }> {
    const samples: ClockSample[] = [];
    for (let count = 0; count < clockSampleCount; count += 1) {
      const sample = Promise.withResolvers<ClockSample>();
      this.#pongs.push(sample.resolve);
      this.send({ version: 1, kind: 'ping', sentMs: nowMs() });
      const answer = await Promise.race([sample.promise, this.#gone.promise]);
      if (answer instanceof Error) break;
      samples.push(answer);
    }
    return clockOffset(samples);
  }

  close(): void {
    this.#end(new Error('closed on this side'));
  }

  /** Says why the conversation is not taken, then ends it. */
  refuse(code: FailureCode, detail: string): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    this.#socket.end(encodeFrame({ version: 1, kind: 'gave-up', code, detail }));
    // A peer that does not hang up is hung up on.
    setTimeout(() => this.#socket.destroy(), silenceMsMax).unref();
    this.#gone.resolve(new Error(`refused: ${detail}`));
  }

  #beat(): void {
    if (performance.now() - this.#heardAtMs > silenceMsMax) {
      this.#end(new Error(`the peer was silent for ${silenceMsMax} ms`));
      return;
    }
    this.send({ version: 1, kind: 'ping', sentMs: nowMs() });
  }

  #receive(chunk: Buffer): void {
    this.#heardAtMs = performance.now();
    try {
      for (const frame of this.#decoder.push(chunk)) this.#dispatch(peerMessage.parse(frame));
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #dispatch(message: PeerMessage): void {
    if (message.kind === 'ping') {
      this.send({ version: 1, kind: 'pong', sentMs: message.sentMs, nowMs: nowMs() });
    } else if (message.kind === 'pong') {
      const { sentMs, nowMs: peerMs } = message;
      this.#pongs.shift()?.({ sentMs, peerMs, receivedMs: nowMs() });
    } else if (this.#listener === null) {
      this.#waiting.push(message);
    } else {
      this.#listener(message);
    }
  }

  #end(reason: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    this.#socket.destroy();
    this.#gone.resolve(reason);
  }
}

/** Wall clock with fractions of a millisecond: the clock that QEMU stamps its events with. */
export const nowMs = (): number => performance.timeOrigin + performance.now();

export interface PeerAddress {
  readonly address: string;
  readonly port: number;
  readonly host: HostName;
}

/** Certificates of this host and whose are no longer good. */
export interface PeerTls {
  readonly material: TlsMaterial;
  readonly revoked: RevocationList;
}

/**
 * Opens the link to a target. Failures: link/refused, certificate/revoked, host/unreachable,
 * link/lost (also from a runner that was started anew and knows nothing of the move).
 */
export async function openPeerLink(
  peer: PeerAddress, tls: PeerTls, hello: Hello,
): Promise<PeerLink> {
  const where = `${peer.host} at ${peer.address}:${peer.port}`;
  const whole = await sayHello(peer, tls, { ...hello, features: [...peerFeatures] });
  // One that closes without a word may not know the word: it is greeted as the first version did.
  const { link, answer } = whole.answer instanceof Error
    ? await sayHello(peer, tls, hello) : whole;
  if (!(answer instanceof Error) && answer.kind === 'welcome') {
    link.agree(answer.features ?? []);
    return link;
  }
  link.close();
  if (!(answer instanceof Error) && answer.kind === 'gave-up') {
    throw new CodedError(answer.code, `${where}: ${answer.detail}`);
  }
  const why = answer instanceof Error ? answer.message : answer.kind;
  throw new CodedError('link/refused', `${where} did not welcome the move: ${why}`);
}

type Hello = Extract<PeerMessage, { kind: 'hello' }>;

/** A new connection, and the first thing said on it, or why it ended. */
async function sayHello(
  peer: PeerAddress, tls: PeerTls, hello: Hello,
): Promise<{ readonly link: PeerLink; readonly answer: PeerMessage | Error }> {
  const socket = await connectTls({
    host: peer.address, port: peer.port, ...tls, expected: [{ role: 'host', name: peer.host }],
    timeoutMs: connectTimeoutMs,
  });
  const link = new PeerLink(socket);
  link.send(hello);
  return { link, answer: await Promise.race([link.next(), link.gone]) };
}

/** Why a hello is not welcomed, as the peer will report it. */
export interface GreetingRefusal {
  readonly code: FailureCode;
  readonly detail: string;
}

/** Decides about a hello: why not, or who takes the link once it is welcomed. */
export type PeerGreeter = (
  hello: Hello, from: HostName,
) => GreetingRefusal | ((link: PeerLink) => void);

/** Listens for source runners. Garbage and strangers are dropped with one log line. */
export async function servePeerLinks(options: {
  readonly address: string;
  readonly port: number;
  readonly tls: PeerTls;
  readonly greet: PeerGreeter;
  readonly log: Logger;
}): Promise<{ readonly port: number; readonly close: () => Promise<void> }> {
  const strangers = new Set<TLSSocket>();
  const open = new Set<TLSSocket>();
  const server: Server = createServer(
    serverTlsOptions(options.tls.material),
    (socket) => {
      if (strangers.size >= strangersMax) {
        socket.destroy();
        return;
      }
      open.add(socket);
      strangers.add(socket);
      socket.on('close', () => {
        open.delete(socket);
        strangers.delete(socket);
      });
      socket.on('error', () => socket.destroy());
      acceptPeer(socket, options, () => strangers.delete(socket));
    },
  );
  const unfollow = followMaterial({ server, material: options.tls.material });
  server.on('tlsClientError', (error) => {
    options.log.warn({ reason: error.message }, 'peer connection refused');
  });
  server.listen(options.port, options.address);
  await once(server, 'listening');
  const bound = server.address();
  return {
    port: typeof bound === 'object' && bound !== null ? bound.port : options.port,
    close: async () => {
      unfollow();
      for (const socket of open) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

function acceptPeer(
  socket: TLSSocket,
  options: { readonly tls: PeerTls; readonly greet: PeerGreeter; readonly log: Logger },
  known: () => void,
): void {
  let identity: Identity;
  try {
    identity = authorizePeer({ socket, expected: [{ role: 'host' }], revoked: options.tls.revoked });
  } catch (error) {
    options.log.warn({ peer: socket.remoteAddress, reason: String(error) }, 'peer is refused');
    socket.destroy();
    return;
  }
  endWhenRevoked({ socket, revoked: options.tls.revoked });
  const link = new PeerLink(socket);
  const timer = setTimeout(() => link.close(), connectTimeoutMs);
  void link.next().then((message) => {
    clearTimeout(timer);
    const taker = message.kind === 'hello'
      ? options.greet(message, identity.name as HostName)
      : { code: 'link/refused' as const, detail: 'the first message must be hello' };
    if (typeof taker === 'object') {
      options.log.warn({ peer: identity.name, ...taker }, 'peer link refused');
      link.refuse(taker.code, taker.detail);
      return;
    }
    known();
    const theirs = message.kind === 'hello' ? message.features : undefined;
    link.agree(theirs ?? []);
    link.send({
      version: 1, kind: 'welcome',
      ...(theirs === undefined ? {} : { features: [...peerFeatures] }),
    });
    taker(link);
  });
}
