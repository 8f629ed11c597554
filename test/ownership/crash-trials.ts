/**
 * Crash trials of a ledger on a disk that forgets what was not synced: random proposals, power lost
 * at random moments with random parts of the last write kept, a disk that fills up, damage. What was
 * answered has to be there afterwards; what was refused for want of room must never come back.
 */
import type { LedgerCore as ProductionCore } from '../../runners/ledger/core.ts';
import type { memoryStorage as productionStorage, MemoryStorage } from '../../runners/group/ledger-log/memory-storage.ts';
import type { LedgerEvent } from '../../contracts/ownership.ts';
import { asHost, control, hostA, joinHost, silent, spec, vm } from '../support/ledger-fixtures.ts';

export interface LedgerParts {
  readonly LedgerCore: typeof ProductionCore;
  readonly memoryStorage: typeof productionStorage;
}

/** Small seeded generator (mulberry32): the whole trial follows from the seed. */
export function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const desire = (running: boolean): LedgerEvent =>
  ({ kind: 'desire', vm, epoch: 1, desired: running ? 'running' : 'stopped' });

class Trial {
  private readonly parts: LedgerParts;
  private readonly random: (below: number) => number;
  readonly problems: string[] = [];
  private storage: MemoryStorage;
  private core!: ProductionCore;
  /** What the last answer said, and what a refused proposal wanted. */
  private answeredIndex = 0;
  private answered = '';

  constructor(parts: LedgerParts, random: (below: number) => number) {
    this.parts = parts;
    this.random = random;
    this.storage = parts.memoryStorage();
  }

  private async open(): Promise<void> {
    this.core = await this.parts.LedgerCore.open({
      storage: this.storage, logger: silent, segmentBytesMax: 6_000,
    });
  }

  private check(when: string): void {
    const desired = this.core.readVm(vm)?.desired ?? '';
    if (this.core.state.index !== this.answeredIndex || desired !== this.answered) {
      this.problems.push(`${when}: answered ${this.answeredIndex} ${this.answered}, `
        + `found ${this.core.state.index} ${desired}`);
    }
  }

  async run(rounds: number): Promise<void> {
    await this.open();
    await this.core.propose([joinHost(hostA)], asHost(hostA));
    await this.core.propose([{ kind: 'create', vm, host: hostA, spec: spec() }], control);
    this.answeredIndex = 2;
    this.answered = 'stopped';
    for (let round = 0; round < rounds && this.problems.length === 0; round += 1) {
      await this.propose(1 + this.random(6));
      const fate = this.random(4);
      if (fate === 0) await this.fillUp();
      if (fate === 1) await this.losePower();
      if (fate === 2) await this.loseInMidWrite();
      this.check(`round ${round}`);
    }
    await this.damage();
  }

  private async propose(count: number): Promise<void> {
    for (let n = 0; n < count; n += 1) {
      const running = this.answered !== 'running';
      const [verdict] = await this.core.propose([desire(running)], control);
      if (!verdict?.accepted || !verdict.changed) throw new Error('the trial itself is wrong');
      this.answeredIndex = verdict.index;
      this.answered = running ? 'running' : 'stopped';
    }
    // A checkpoint may follow the last answer; it is done when nothing is left to run.
    await new Promise((resolve) => setImmediate(resolve));
  }

  private async losePower(): Promise<void> {
    this.storage = this.storage.losePower((loose) => this.random(loose + 1));
    await this.open();
  }

  /** Power fails while a proposal is on its way: nothing says whether it happened, except whole. */
  private async loseInMidWrite(): Promise<void> {
    const torn = this.parts.memoryStorage(await this.halfWritten());
    this.storage = torn;
    await this.open();
    // A torn tail must not be in the way of what is written next.
    await this.propose(1);
    await this.losePower();
  }

  private async halfWritten(): Promise<Map<string, Buffer>> {
    const files = new Map<string, Buffer>();
    const names = [...await this.storage.list()].sort();
    for (const name of names) files.set(name, await this.storage.read(name));
    const segment = names.findLast((name) => name.startsWith('segment')) ?? '';
    const bytes = files.get(segment) ?? Buffer.alloc(0);
    const record = bytes.subarray(24);
    const piece = record.length > 40
      ? record.subarray(0, 9 + this.random(30)) : Buffer.from('torn in the middle');
    files.set(segment, Buffer.concat([bytes, piece]));
    return files;
  }

  private async fillUp(): Promise<void> {
    const used = (await Promise.all((await this.storage.list()).map(
      async (name) => (await this.storage.read(name)).length))).reduce((sum, size) => sum + size, 0);
    this.storage.limitTo(used + this.random(300));
    const wanted = this.answered !== 'running';
    const outcome = await this.core.propose([desire(wanted)], control).then(
      () => 'accepted', (error: { code?: string }) => error.code ?? 'unknown');
    if (outcome !== 'disk/full') this.problems.push(`a full disk answers ${outcome}`);
    this.check('after a full disk');
    this.storage.limitTo(null);
    if (this.random(2) === 0) await this.losePower();
    this.check('after a full disk and power loss');
    await this.propose(1);
    await this.losePower();
  }

  /** One changed byte before the last record must keep the ledger from starting. */
  private async damage(): Promise<void> {
    await this.propose(4);
    const name = [...await this.storage.list()].sort().findLast((one) => one.startsWith('segment'));
    if (name === undefined) throw new Error('no segment');
    const size = (await this.storage.read(name)).length;
    if (size < 3_000) await this.propose(2);
    this.storage.damage({ name, offset: 24 + 8 + 60 + this.random(200) });
    const outcome = await this.parts.LedgerCore.open({ storage: this.storage, logger: silent }).then(
      () => 'started', (error: Error) => error.message);
    if (!outcome.includes('damaged')) this.problems.push(`a damaged log: ${outcome}`);
  }
}

/** Problems of several trials; empty when the ledger keeps its word. */
export async function crashTrials(parts: LedgerParts, seed: number): Promise<readonly string[]> {
  const random = randomFrom(seed);
  const problems: string[] = [];
  for (let trial = 0; trial < 8 && problems.length === 0; trial += 1) {
    const one = new Trial(parts, random);
    try {
      await one.run(25);
    } catch (error) {
      problems.push((error as Error).message);
    }
    problems.push(...one.problems);
  }
  return problems;
}
