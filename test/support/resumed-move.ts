/**
 * Moves that something happens to in the middle of their copy: how long until they are over, and
 * what went over the link beyond what a move to which nothing happens sends, counted at the switch.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mib } from '../../contracts/units.ts';
import { runCommand } from '../../lab/command.ts';
import { imageDirectory } from '../../lab/compose.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { completed, until } from './move-stage.ts';
import type { MoveStage, StageGuest } from './move-stage.ts';

/** A guest of these takes about 10 s. */
const bandwidthBytesPerSecond = 16_000_000;
const diskBytes = 48 * mib;

/** What one such move came to. */
export interface ResumedMove {
  /** From the end of what happened until the source sends again. */
  readonly goesOnMs: number;
  /** The same until the move was over. */
  readonly endedMs: number;
  /** Bytes beyond those of a plain move, by what a plain move sends. */
  readonly sentAgain: number;
}

/** One guest with memory and a disk in use, moved to and fro. */
export class ResumedMoves {
  readonly stage: MoveStage;
  readonly guest: StageGuest;
  #plainBytes = 0;

  private constructor(stage: MoveStage, guest: StageGuest) {
    this.stage = stage;
    this.guest = guest;
  }

  static async make(stage: MoveStage, octet: number): Promise<ResumedMoves> {
    const sourceImage = join(imageDirectory(stage.lab), 'in-use.raw');
    mkdirSync(imageDirectory(stage.lab), { recursive: true });
    writeFileSync(sourceImage, randomBytes(diskBytes));
    const guest = await stage.guest({
      name: 'resumed', octet, dataMib: 48,
      disk: { format: 'raw', sizeBytes: 64 * mib, sourceImage },
    });
    return new ResumedMoves(stage, guest);
  }

  /** Moves it, with `happens` once so many bytes are over. */
  async move(options: {
    readonly phase: 'disk' | 'memory';
    readonly happens: (source: LabHost, target: LabHost) => Promise<void>;
  }): Promise<ResumedMove> {
    const { stage, guest } = this;
    if (this.#plainBytes === 0) {
      const [source, begun] = [await guest.host(), await this.#counters()];
      await guest.moveAndExpect({ policy: { bandwidthBytesPerSecond } });
      this.#plainBytes = await this.#sentSince(source, begun);
    }
    const before = await guest.begin();
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const begun = await this.#counters();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: { bandwidthBytesPerSecond } });
    const goal = (options.phase === 'disk' ? 0.6 : 1.6) * diskBytes;
    await until(`${migration} has sent ${goal}`, async () => {
      const { progress, outcome: ended } = (await stage.view(migration)).status;
      if (ended !== null) throw new Error(`it ended before: ${JSON.stringify(ended)}`);
      return progress?.phase === options.phase && await this.#sentSince(source, begun) > goal
        ? true : null;
    }, 60_000);
    await options.happens(source, target);
    const overMs = performance.now();
    const sentBefore = await this.#sentSince(source, begun);
    let isOver = false;
    void outcome.finally(() => { isOver = true; });
    await until('the source sends again', async () =>
      isOver || await this.#sentSince(source, begun) > sentBefore + mib || null, 60_000);
    const goesOnMs = performance.now() - overMs;
    await completed(outcome);
    const endedMs = performance.now() - overMs;
    const sent = await this.#sentSince(source, begun);
    await guest.expectAt(target, before, 1);
    return { goesOnMs, endedMs, sentAgain: sent / this.#plainBytes - 1 };
  }

  async #counters(): Promise<ReadonlyMap<string, number>> {
    const { hosts, switchNamespace } = this.stage.lab.plan;
    const counts = await Promise.all(hosts.map(async ({ name, number }) => {
      const text = await runCommand(['ip', '-n', switchNamespace, '-j', '-s', 'link', 'show', 'dev',
        `h${number}-g`]);
      const [port] = JSON.parse(text) as { readonly stats64: { readonly rx: { bytes: number } } }[];
      if (port === undefined) throw new Error(`no port of ${name}`);
      return [name, port.stats64.rx.bytes] as const;
    }));
    return new Map(counts);
  }

  async #sentSince(host: LabHost, begun: ReadonlyMap<string, number>): Promise<number> {
    return ((await this.#counters()).get(host.name) ?? 0) - (begun.get(host.name) ?? 0);
  }
}

/** For people. */
export const told = (what: string, { goesOnMs, endedMs, sentAgain }: ResumedMove): string =>
  `${what}: sends again after ${(goesOnMs / 1000).toFixed(1)} s, over after `
    + `${(endedMs / 1000).toFixed(1)} s, `
    + `${(sentAgain * 100).toFixed(1)} % sent again`;
