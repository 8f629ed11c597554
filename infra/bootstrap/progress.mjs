// Shows what the bootstrap does: a live line on a terminal, else a line a step and a heartbeat.
const heartbeatMs = 15_000;
const frameMs = 200;

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

/** The display; everything goes to stderr, so that stdout stays for the closing JSON object. */
export class Progress {
  #running = new Map();
  #live;
  #timer;
  #stream;
  #lastBeat = Date.now();

  constructor(stream = process.stderr) {
    this.#stream = stream;
    this.#live = Boolean(stream.isTTY) && !process.env.CI;
    this.#timer = setInterval(() => this.#tick(), frameMs);
    this.#timer.unref();
  }

  start(name) {
    this.#running.set(name, { since: Date.now(), detail: '' });
  }

  detail(name, text) {
    const step = this.#running.get(name);
    if (step && !text.startsWith('npm warn')) step.detail = text;
  }

  finish(name, outcome, ms) {
    this.#running.delete(name);
    const mark = outcome === 'failed' ? '✗' : '✓';
    this.#line(`  ${mark} ${name.padEnd(34)} ${seconds(ms).padStart(8)}  ${outcome}`);
  }

  note(text) {
    this.#line(text);
  }

  close() {
    clearInterval(this.#timer);
    if (this.#live) this.#stream.write('\r\x1b[K');
  }

  #line(text) {
    this.#stream.write(`${this.#live ? '\r\x1b[K' : ''}${text}\n`);
  }

  #tick() {
    const entries = [...this.#running]
      .map(([name, step]) => [name, Date.now() - step.since, step.detail]);
    if (this.#live) {
      const text = entries.map(([name, ms]) => `${name} ${Math.round(ms / 1000)} s`).join(' · ');
      const detail = entries.at(-1)?.[2] ?? '';
      const width = (this.#stream.columns ?? 80) - 1;
      this.#stream.write(`\r\x1b[K${`  … ${text}  ${detail}`.slice(0, width)}`);
    } else if (entries.length > 0 && Date.now() - this.#lastBeat >= heartbeatMs) {
      this.#lastBeat = Date.now();
      for (const [name, ms, detail] of entries) {
        if (ms < heartbeatMs) continue;
        this.#stream.write(`  … ${name} ${seconds(ms)}  ${detail.slice(0, 60)}\n`);
      }
    }
  }
}
