/** Entries of one watched VM on their way to a reader that may be slow. */
import type { StopSignal, VmEntry } from '../contracts/ownership.ts';

/** Beyond this the oldest unread ones are dropped: a reader so slow wants the newest anyway. */
const unreadMax = 1_000;

export class EntryQueue implements AsyncIterable<VmEntry | null> {
  private readonly unread: (VmEntry | null)[] = [];
  private wake: () => void = () => {};
  private ended = false;
  private readonly onEnd: () => void;

  /** `onEnd` is called once, when the reader leaves or `signal` aborts. */
  constructor(signal: StopSignal, onEnd: () => void) {
    this.onEnd = onEnd;
    if (signal.aborted) this.end();
    else signal.addEventListener('abort', () => this.end());
  }

  get isEnded(): boolean {
    return this.ended;
  }

  push(entry: VmEntry | null): void {
    if (this.ended) return;
    this.unread.push(entry);
    if (this.unread.length > unreadMax) this.unread.shift();
    this.wake();
  }

  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.unread.length = 0;
    this.onEnd();
    this.wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<VmEntry | null> {
    try {
      while (!this.ended) {
        if (this.unread.length > 0) yield this.unread.shift() as VmEntry | null;
        else {
          await new Promise<void>((resolve) => {
            this.wake = resolve;
          });
        }
      }
    } finally {
      this.end();
    }
  }
}
