/**
 * A long-lived `nft -i`: a rule change costs 0.5 ms instead of the 9 ms of a new process. Decides
 * how an answer is told apart from the next one; what is changed is the caller's business.
 *
 * nft says nothing on success. Each command is therefore followed by a word that it can't parse:
 * the complaint about that word ends the answer, and whatever came before it is the command's
 * failure.
 */
import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { Socket } from 'node:net';
import { CodedError } from '../../contracts/failures.ts';

/** A change takes 0.5 ms, up to 20 when the kernel waits for a grace period. */
const answerTimeoutMs = 5_000;
/** An error quotes the command; a longer text means that we lost our place. */
const answerBytesMax = 256 * 1024;

interface Waiting {
  readonly mark: string;
  readonly resolve: (complaint: string) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** One `nft -i`; started at the first command and again after it ended. */
export class NftSession {
  readonly #argv: readonly string[];
  #child: ChildProcessWithoutNullStreams | null = null;
  #queue: Waiting[] = [];
  #text = '';
  #count = 0;

  constructor(nftCommand: readonly string[]) {
    this.#argv = [...nftCommand, '-i'];
  }

  /**
   * Runs statements as one transaction: all or nothing. They must not contain line breaks. Failure:
   * engine/failed with nft's complaint, vmm/timeout.
   */
  async apply(statements: readonly string[]): Promise<void> {
    const line = statements.join('; ');
    if (/[\r\n]/.test(line)) throw new CodedError('internal', 'a line break in an nft command');
    const complaint = await this.#ask(line);
    if (complaint !== '') throw new CodedError('engine/failed', `nft: ${complaint.slice(0, 300)}`);
  }

  #ask(line: string): Promise<string> {
    const child = this.#child ?? this.#start();
    this.#count += 1;
    const mark = `endmark-${this.#count}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // The place in the stream is lost: a new child starts clean.
        this.#lose(new CodedError('vmm/timeout', `nft did not answer in ${answerTimeoutMs} ms`));
      }, answerTimeoutMs);
      this.#queue.push({ mark, resolve, reject, timer });
      child.stdin.write(`${line}\n${mark}\n`);
    });
  }

  #start(): ChildProcessWithoutNullStreams {
    const [program = 'nft', ...args] = this.#argv;
    // Interactive nft keeps a history of commands in the home directory of whoever runs it.
    const env = { ...process.env, HOME: '/nonexistent' };
    const child = spawn(program, args, { stdio: 'pipe', env });
    this.#child = child;
    const lost = (why: string): void => {
      if (this.#child === child) this.#lose(new CodedError('engine/failed', `nft: ${why}`));
    };
    child.stdout.resume();
    child.stderr.on('data', (chunk: Buffer) => {
      if (this.#child !== child) return;
      this.#text += chunk.toString('utf8');
      if (this.#text.length > answerBytesMax) return lost('its answer is too long');
      this.#take();
    });
    child.stdin.on('error', (error) => lost(error.message));
    child.once('error', (error) => lost(error.message));
    child.once('close', (code) => lost(`ended with ${code}`));
    // The session must not keep the process alive: gates close by their timeouts.
    child.unref();
    for (const pipe of [child.stdin, child.stdout, child.stderr]) {
      if (pipe instanceof Socket) pipe.unref();
    }
    return child;
  }

  /** Hands out every answer whose end mark is complete: error line, quoted word, line of carets. */
  #take(): void {
    for (let head = this.#queue[0]; head !== undefined; head = this.#queue[0]) {
      const end = new RegExp(`(?:^|\\n)Error: syntax error[^\\n]*\\n${head.mark}\\n[ ^]*\\n`).exec(
        this.#text,
      );
      if (end === null) return;
      const complaint = this.#text.slice(0, end.index).trim();
      this.#text = this.#text.slice(end.index + end[0].length);
      this.#queue.shift();
      clearTimeout(head.timer);
      head.resolve(complaint);
    }
  }

  #lose(error: CodedError): void {
    this.#child?.kill('SIGKILL');
    this.#child = null;
    this.#text = '';
    const waiting = this.#queue;
    this.#queue = [];
    for (const { timer, reject } of waiting) {
      clearTimeout(timer);
      reject(error);
    }
  }

  /** Ends the child; rules stay as they are. */
  close(): void {
    this.#lose(new CodedError('engine/failed', 'the nft session was closed'));
  }
}
