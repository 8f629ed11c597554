/** One kept TCP connection to the witness in the guest: a JSON object a line, answers in order. */
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';

/** A full sweep of 1 GiB under TCG takes seconds; a guest on a busy machine some more. */
export const witnessAnswerMsMax = 120_000;
const connectMsMax = 10_000;

/** What the witness reports; fields that the lab does not use are left out. */
export const witnessStatus = z.looseObject({
  bootId: z.string(),
  counter: z.number(),
  selfCheckFailures: z.number(),
  pagesWritten: z.number(),
  pagesChecked: z.number(),
  patternBytes: z.number(),
  dataBytes: z.number(),
  running: z.boolean(),
  dirtyRateAchievedBytesPerSecond: z.number(),
  longestGapMs: z.number(),
});
export type WitnessStatus = z.infer<typeof witnessStatus>;

/** A request to the witness: op is status, start, stop, set, verify or fill. */
export type WitnessRequest = Readonly<Record<string, string | number | boolean>> & {
  readonly op: string;
};

/** The connection; every request is answered with the status after it. */
export class WitnessLine {
  readonly #socket: Socket;
  readonly #waiting: ((line: string | null) => void)[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => this.#waiting.shift()?.(line));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#waiting.splice(0).forEach((tell) => tell(null)));
  }

  /** Connects once. Failure: host/unreachable. */
  static async open(options: {
    readonly address: string; readonly port: number; readonly connectMsMax?: number;
  }): Promise<WitnessLine> {
    return await new Promise((resolve, reject) => {
      const socket = connect({ host: options.address, port: options.port, noDelay: true });
      const fail = (why: string): void => {
        socket.destroy();
        reject(new CodedError('host/unreachable', `witness ${options.address}: ${why}`));
      };
      socket.setTimeout(options.connectMsMax ?? connectMsMax, () => fail('no connection'));
      socket.once('error', (error) => fail(error.message));
      socket.once('connect', () => {
        socket.setTimeout(0);
        socket.removeAllListeners('error');
        resolve(new WitnessLine(socket));
      });
    });
  }

  /** Failures: host/unreachable (connection lost, no answer in 120 s), internal (refused). */
  async ask(request: WitnessRequest, answerMsMax = witnessAnswerMsMax): Promise<WitnessStatus> {
    const line = await new Promise<string | null>((resolve) => {
      if (this.#socket.destroyed) return resolve(null);
      const timer = setTimeout(() => this.#socket.destroy(), answerMsMax);
      this.#waiting.push((answer) => {
        clearTimeout(timer);
        resolve(answer);
      });
      this.#socket.write(`${JSON.stringify(request)}\n`);
    });
    if (line === null) throw new CodedError('host/unreachable', 'the witness connection broke');
    const answer = JSON.parse(line) as { error?: string };
    if (answer.error !== undefined) throw new CodedError('internal', `witness: ${answer.error}`);
    return witnessStatus.parse(answer);
  }

  close(): void {
    this.#socket.destroy();
  }
}
