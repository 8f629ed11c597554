/** Starts the outside client in its namespace and asks it; the other end of main.ts. */
import { spawn } from 'node:child_process';
import type { ChildProcessByStdio } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { CodedError } from '../../contracts/failures.ts';
import { commandIn, labVariable } from '../processes.ts';
import type { GapReport } from './gaps.ts';
import type { ReadBack } from './redis-writer.ts';
import { witnessAnswerMsMax } from './witness-line.ts';
import type { WitnessRequest, WitnessStatus } from './witness-line.ts';

const program = fileURLToPath(new URL('main.ts', import.meta.url));

/** Gaps and writes since the last mark. */
export interface ClientReport {
  readonly echo: GapReport;
  readonly redis: GapReport;
  readonly ackedWrites: number;
  readonly connectionLost: boolean;
}

/** Where the guest is and how fast the client writes. */
export interface ClientTarget {
  readonly labId: string;
  readonly namespace: string;
  readonly address: string;
  readonly writeEveryMs?: number;
  readonly echoEveryMs?: number;
}

/** One running outside client. */
export class OutsideClient {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #waiting = new Map<number, (answer: Record<string, unknown> | null) => void>();
  #nextId = 1;
  #complaint = '';

  private constructor(child: ChildProcessByStdio<Writable, Readable, Readable>) {
    this.#child = child;
    child.stderr.setEncoding('utf8').on('data', (text: string) => (this.#complaint += text));
    child.stdin.on('error', () => undefined);
    child.once('close', () => {
      for (const tell of this.#waiting.values()) tell(null);
      this.#waiting.clear();
    });
    createInterface({ input: child.stdout }).on('line', (line) => this.#onLine(line));
  }

  /** Waits for the guest: tries until Redis and witness answer, at most `waitMsMax`. */
  static async whenGuestAnswers(
    target: ClientTarget, waitMsMax: number,
  ): Promise<OutsideClient> {
    const client = new OutsideClient(startChild(target, waitMsMax));
    const complaint = await client.#ready();
    if (complaint === null) return client;
    throw new CodedError('host/unreachable',
      `guest ${target.address} did not answer in ${waitMsMax} ms: ${complaint}`);
  }

  /** Begins and ends the steady writing. */
  async startWriting(): Promise<void> { await this.#ask({ op: 'start' }); }
  async stopWriting(): Promise<void> { await this.#ask({ op: 'stop' }); }
  /** Begins a new window for gaps. */
  async mark(): Promise<void> { await this.#ask({ op: 'mark' }); }
  async report(): Promise<ClientReport> {
    return await this.#ask({ op: 'report' }) as unknown as ClientReport;
  }
  /** Reads every acknowledged write back and starts a new count. */
  async readBack(): Promise<ReadBack> {
    return await this.#ask({ op: 'read-back' }) as unknown as ReadBack;
  }
  /** The same over a new connection: of a guest that was booted again. */
  async readBackAnew(): Promise<ReadBack> {
    return await this.#ask({ op: 'read-back-anew' }) as unknown as ReadBack;
  }
  /** Asks the witness over a new connection; null when nothing answers within a second or two. */
  async probe(): Promise<WitnessStatus | null> {
    const { status } = await this.#ask({ op: 'probe' });
    return status as WitnessStatus | null;
  }
  /** Fills Redis with data that does not compress. */
  async fill(bytes: number): Promise<void> { await this.#ask({ op: 'fill', bytes }); }
  /** Asks the witness in the guest. */
  async witness(request: WitnessRequest): Promise<WitnessStatus> {
    const { status } = await this.#ask({ op: 'witness', request });
    return status as WitnessStatus;
  }

  /** Ends the client. */
  async close(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.stdin.end();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 2_000);
    await ended;
    clearTimeout(timer);
  }

  /** Null when it is ready, else what it said. */
  async #ready(): Promise<string | null> {
    const answer = await new Promise<Record<string, unknown> | null>((resolve) => {
      this.#waiting.set(0, resolve);
    });
    if (answer?.['msg'] === 'ready') return null;
    await this.close();
    return String(answer?.['error'] ?? this.#complaint.slice(-300));
  }

  async #ask(command: { readonly op: string } & Record<string, unknown>,
  ): Promise<Record<string, unknown>> {
    const id = this.#nextId++;
    const answer = await new Promise<Record<string, unknown> | null>((resolve) => {
      if (this.#child.exitCode !== null) return resolve(null);
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        resolve({ error: 'no answer in time' });
      }, witnessAnswerMsMax + 30_000);
      this.#waiting.set(id, (line) => {
        clearTimeout(timer);
        resolve(line);
      });
      this.#child.stdin.write(`${JSON.stringify({ ...command, id })}\n`);
    });
    if (answer === null) {
      throw new CodedError('internal', `outside client ended: ${this.#complaint.slice(-300)}`);
    }
    if (typeof answer['error'] === 'string') {
      throw new CodedError('internal', `outside client: ${command.op}: ${answer['error']}`);
    }
    return answer;
  }

  #onLine(line: string): void {
    const answer = JSON.parse(line) as Record<string, unknown>;
    const id = typeof answer['id'] === 'number' ? answer['id'] : 0;
    const tell = this.#waiting.get(id);
    this.#waiting.delete(id);
    tell?.(answer);
  }
}

function startChild(
  target: ClientTarget, waitMs: number,
): ChildProcessByStdio<Writable, Readable, Readable> {
  const [command = '', ...args] = commandIn(target.namespace, [
    process.execPath, program, '--address', target.address,
    '--write-every-ms', String(target.writeEveryMs ?? 5),
    '--echo-every-ms', String(target.echoEveryMs ?? 2), '--wait-ms', String(waitMs),
  ]);
  return spawn(command, args, {
    // A session of its own: its priority is not to be that of whoever started it.
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, [labVariable]: target.labId },
  });
}
