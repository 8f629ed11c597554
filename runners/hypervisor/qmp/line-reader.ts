/**
 * Cuts a byte stream into lines of bounded length. Decides only where a line ends; what it means
 * is the client's business.
 */

/** Longest line that a VMM may send: query-block and CPU models are below 200 KiB. */
export const lineBytesMax = 4 * 1024 * 1024;

/** Collects chunks and hands out complete lines; `push` answers false once a line is too long. */
export class LineReader {
  #held: Buffer[] = [];
  #heldBytes = 0;
  readonly #onLine: (line: string) => void;
  readonly #bytesMax: number;

  constructor(onLine: (line: string) => void, bytesMax: number = lineBytesMax) {
    this.#onLine = onLine;
    this.#bytesMax = bytesMax;
  }

  /** Takes a chunk; false means that the peer broke the limit and must not be read any further. */
  push(chunk: Buffer): boolean {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      if (this.#heldBytes + end - start > this.#bytesMax) return false;
      this.#emit(chunk.subarray(start, end));
      start = end + 1;
    }
    const rest = chunk.length - start;
    if (this.#heldBytes + rest > this.#bytesMax) return false;
    if (rest > 0) {
      this.#held.push(chunk.subarray(start));
      this.#heldBytes += rest;
    }
    return true;
  }

  #emit(tail: Buffer): void {
    const line = this.#heldBytes === 0 ? tail : Buffer.concat([...this.#held, tail]);
    this.#held = [];
    this.#heldBytes = 0;
    const text = line.toString('utf8').trim();
    if (text.length > 0) this.#onLine(text);
  }
}
