/**
 * A QMP connection: greeting, capabilities, commands and events. It decides how replies find their
 * commands and what a broken peer is called; which commands make sense is left to the callers.
 *
 * One line in, one line out, no queue of our own: the client sits inside the blackout of a move.
 */
import { connect, type Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { z } from 'zod';
import { CodedError } from '../../../contracts/failures.ts';
import { LineReader, lineBytesMax } from './line-reader.ts';

/** An ordinary query answers in 1-5 ms; a host that swaps or is overloaded takes seconds. */
export const commandTimeoutMsDefault = 5_000;
/** Events kept for callers that look back (`seenSince`); a move produces fewer than 40. */
const eventsKeptMax = 256;

/** An event of the VMM with both clocks. */
export interface QmpEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** The VMM's own wall-clock stamp, microseconds since 1970; exact to the moment it happened. */
  readonly vmmStampUs: number;
  /** When this process read it, monotonic ms (performance.now()). */
  readonly receivedAtMs: number;
  /** Position among the events of this connection, from 0. */
  readonly sequence: number;
}

/** What the VMM says about itself before anything else. */
export interface QmpGreeting {
  readonly version: string;
  readonly major: number;
  readonly minor: number;
  /** Commands may overtake a main loop that hangs. */
  readonly outOfBand: boolean;
}

/** How one command is sent and what its answer must look like. */
export interface CommandOptions<T> {
  readonly arguments?: Readonly<Record<string, unknown>>;
  readonly reply?: z.ZodType<T>;
  readonly timeoutMs?: number;
  /** Answered even while the VMM's main loop hangs; only for commands that QEMU allows it for. */
  readonly outOfBand?: boolean;
}

/** Which event to wait for, and for how long. */
export interface EventWish {
  readonly timeoutMs: number;
  readonly match?: (event: QmpEvent) => boolean;
}

/** An event that will come; `cancel` gives the wait up without an error. */
export interface ExpectedEvent {
  readonly arrived: Promise<QmpEvent>;
  cancel(): void;
}

/** A command that the VMM refused; `errorClass` is QMP's own (GenericError, DeviceNotFound …). */
export class QmpRefusal extends CodedError {
  readonly errorClass: string;
  readonly description: string;

  constructor(command: string, errorClass: string, description: string) {
    super('vmm/protocol', `${command} refused: ${description.slice(0, 500)}`);
    this.errorClass = errorClass;
    this.description = description;
  }
}

const count = z.number().int();
const greetingShape = z.object({
  QMP: z.object({
    capabilities: z.array(z.string()),
    version: z.object({ qemu: z.object({ major: count, minor: count, micro: count }) }),
  }),
});
const messageShape = z.object({
  id: z.number().optional(),
  return: z.unknown().optional(),
  error: z.object({ class: z.string(), desc: z.string() }).optional(),
  event: z.string().optional(),
  data: z.record(z.string(), z.unknown()).optional(),
  timestamp: z.object({ seconds: z.number(), microseconds: z.number() }).optional(),
});

interface Pending {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}
interface Waiter {
  readonly name: string;
  readonly match: (event: QmpEvent) => boolean;
  readonly resolve: (event: QmpEvent) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/**
 * One QMP connection. Every failure is a CodedError: `vmm/gone` (socket lost or closed),
 * `vmm/timeout`, `vmm/protocol` (garbage, oversized line, refused command: QmpRefusal).
 */
export class QmpClient {
  readonly greeting: QmpGreeting;
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  readonly #waiters = new Set<Waiter>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #events: QmpEvent[] = [];
  readonly #gone: Promise<CodedError>;
  #tellGone: (error: CodedError) => void = () => undefined;
  #nextId = 1;
  #eventCount = 0;
  #failure: CodedError | null = null;

  private constructor(socket: Socket, greeting: QmpGreeting) {
    this.#socket = socket;
    this.greeting = greeting;
    this.#gone = new Promise((resolve) => {
      this.#tellGone = resolve;
    });
  }

  /**
   * Connects to the VMM's monitor and leaves capability negotiation behind it. Retries nothing.
   * Failures: vmm/gone (no listener), vmm/timeout, vmm/protocol.
   */
  static async connect(options: {
    readonly socketPath: string;
    readonly timeoutMs?: number;
    readonly lineBytesMax?: number;
  }): Promise<QmpClient> {
    const timeoutMs = options.timeoutMs ?? commandTimeoutMsDefault;
    const { socketPath } = options;
    return await new Promise<QmpClient>((resolve, reject) => {
      const socket = connect(socketPath);
      let client: QmpClient | null = null;
      const timer = setTimeout(
        () => fail(new CodedError('vmm/timeout', `${socketPath}: no greeting in ${timeoutMs} ms`)),
        timeoutMs,
      );
      const fail = (error: CodedError): void => {
        clearTimeout(timer);
        socket.destroy();
        if (client === null) reject(error);
        else client.#fail(error);
      };
      const onLine = (line: string): void => {
        if (client !== null) return client.#onLine(line);
        clearTimeout(timer);
        const greeting = parseGreeting(line);
        if (greeting instanceof CodedError) return fail(greeting);
        client = new QmpClient(socket, greeting);
        const connected = client;
        const enable = greeting.outOfBand ? ['oob'] : [];
        connected.execute('qmp_capabilities', { timeoutMs, arguments: { enable } }).then(
          () => resolve(connected),
          (error: unknown) => {
            socket.destroy();
            reject(error as Error);
          },
        );
      };
      const reader = new LineReader(onLine, options.lineBytesMax ?? lineBytesMax);
      socket.on('data', (chunk) => {
        if (!reader.push(chunk)) fail(new CodedError('vmm/protocol', 'a line is too long'));
      });
      socket.on('error', (error) =>
        fail(new CodedError('vmm/gone', `${socketPath}: ${error.message}`, error)),
      );
      socket.on('close', () => fail(new CodedError('vmm/gone', `${socketPath}: closed`)));
    });
  }

  /** Sends one command and answers its `return`, checked against `reply` where one is given. */
  async execute<T = unknown>(command: string, options: CommandOptions<T> = {}): Promise<T> {
    const answer = await this.#send(command, options);
    if (options.reply === undefined) return answer as T;
    const parsed = options.reply.safeParse(answer);
    if (parsed.success) return parsed.data;
    throw new CodedError('vmm/protocol', `${command}: ${z.prettifyError(parsed.error)}`);
  }

  /** Registers for the next event of that name. Call it before the command that causes it. */
  expectEvent(name: string, wish: EventWish): ExpectedEvent {
    let waiter: Waiter | null = null;
    const arrived = new Promise<QmpEvent>((resolve, reject) => {
      if (this.#failure !== null) return reject(this.#failure);
      const timer = setTimeout(() => {
        if (waiter !== null) this.#waiters.delete(waiter);
        reject(new CodedError('vmm/timeout', `no ${name} event in ${wish.timeoutMs} ms`));
      }, wish.timeoutMs);
      waiter = { name, match: wish.match ?? (() => true), resolve, reject, timer };
      this.#waiters.add(waiter);
    });
    // The caller may be throwing for another reason: an unwatched wait must not end the process.
    arrived.catch(() => undefined);
    const cancel = (): void => {
      if (waiter === null) return;
      clearTimeout(waiter.timer);
      this.#waiters.delete(waiter);
    };
    return { arrived, cancel };
  }

  /** Calls `listener` for every event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  /** Events of that name from `sequence` on, oldest first, as far as they are still kept. */
  seenSince(name: string, sequence: number): readonly QmpEvent[] {
    return this.#events.filter((event) => event.name === name && event.sequence >= sequence);
  }

  /** Number of events so far: the mark for `seenSince`. */
  get eventCount(): number {
    return this.#eventCount;
  }

  /** Why the connection ended, null while it works. */
  get failure(): CodedError | null {
    return this.#failure;
  }

  /** Resolves, never rejects, when the connection ends for whatever reason. */
  get gone(): Promise<CodedError> {
    return this.#gone;
  }

  /** Ends the connection; the VMM goes on. Later calls fail with vmm/gone. */
  close(): void {
    this.#fail(new CodedError('vmm/gone', 'the connection was closed here'));
    this.#socket.destroy();
  }

  #send(command: string, options: CommandOptions<unknown>): Promise<unknown> {
    const timeoutMs = options.timeoutMs ?? commandTimeoutMsDefault;
    const verb = options.outOfBand === true && this.greeting.outOfBand ? 'exec-oob' : 'execute';
    return new Promise((resolve, reject) => {
      if (this.#failure !== null) return reject(this.#failure);
      const id = this.#nextId;
      this.#nextId += 1;
      // A reply that comes after its timeout finds no entry and is dropped.
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new CodedError('vmm/timeout', `${command}: no answer in ${timeoutMs} ms`));
      }, timeoutMs);
      this.#pending.set(id, { command, resolve, reject, timer });
      const { arguments: args } = options;
      const message = { [verb]: command, ...(args === undefined ? {} : { arguments: args }), id };
      this.#socket.write(`${JSON.stringify(message)}\r\n`);
    });
  }

  #onLine(line: string): void {
    const receivedAtMs = performance.now();
    let raw: unknown;
    try {
      raw = JSON.parse(line);
    } catch (error) {
      return this.#break(new CodedError('vmm/protocol', 'a line is not JSON', error));
    }
    const parsed = messageShape.safeParse(raw);
    if (!parsed.success) {
      return this.#break(new CodedError('vmm/protocol', z.prettifyError(parsed.error)));
    }
    const message = parsed.data;
    if (message.event !== undefined) return this.#onEvent(message, receivedAtMs);
    if (message.id === undefined) {
      if (message.error === undefined) return;
      return this.#break(new CodedError('vmm/protocol', message.error.desc.slice(0, 500)));
    }
    const pending = this.#pending.get(message.id);
    if (pending === undefined) return;
    this.#pending.delete(message.id);
    clearTimeout(pending.timer);
    if (message.error === undefined) return pending.resolve(message.return);
    pending.reject(new QmpRefusal(pending.command, message.error.class, message.error.desc));
  }

  #onEvent(message: z.infer<typeof messageShape>, receivedAtMs: number): void {
    const stamp = message.timestamp;
    const event: QmpEvent = {
      name: message.event ?? '',
      data: message.data ?? {},
      vmmStampUs: stamp === undefined ? 0 : stamp.seconds * 1e6 + stamp.microseconds,
      receivedAtMs,
      sequence: this.#eventCount,
    };
    this.#eventCount += 1;
    this.#events.push(event);
    if (this.#events.length > eventsKeptMax) this.#events.shift();
    for (const waiter of this.#waiters) {
      if (waiter.name !== event.name || !waiter.match(event)) continue;
      this.#waiters.delete(waiter);
      clearTimeout(waiter.timer);
      waiter.resolve(event);
    }
    for (const listener of this.#listeners) listener(event);
  }

  #break(error: CodedError): void {
    this.#fail(error);
    this.#socket.destroy();
  }

  #fail(error: CodedError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    for (const { timer, reject } of [...this.#pending.values(), ...this.#waiters]) {
      clearTimeout(timer);
      reject(error);
    }
    this.#pending.clear();
    this.#waiters.clear();
    this.#tellGone(error);
  }
}

function parseGreeting(line: string): QmpGreeting | CodedError {
  try {
    const { version, capabilities } = greetingShape.parse(JSON.parse(line)).QMP;
    const { major, minor, micro } = version.qemu;
    return {
      version: `${major}.${minor}.${micro}`,
      major,
      minor,
      outOfBand: capabilities.includes('oob'),
    };
  } catch (error) {
    return new CodedError('vmm/protocol', 'the greeting is not QMP', error);
  }
}
