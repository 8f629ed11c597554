/**
 * A page that dirty tracking misses, planted in real moves: it is repaired where the guest left it
 * alone, and where the guest wrote it the VM stands until an operator decides.
 */
import { closeSync, mkdtempSync, openSync, readdirSync, readSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { MigrationOutcome } from '../../contracts/migration.ts';
import { mib } from '../../contracts/units.ts';
import type { GuestLoad } from '../../lab/bench/measure.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { plantedFile } from '../../runners/host/planted-faults.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { Move, StageGuest } from '../support/move-stage.ts';

const pageBytes = 4096;
/** Of the witness's pattern; rewritten many times a second as long as the load runs. */
const patternPage = 300;
const patternPages = 16 * mib / pageBytes;
const load: GuestLoad = {
  dirtyBytesPerSecond: 150_000_000, workingSetBytes: 2 * mib, order: 'sequential', pages: 'full',
};

/** Where the guest's physical memory holds a page of the pattern: each block of it names the page. */
function physicalPage(path: string, wanted: number): number {
  const found: number[] = [];
  const chunk = Buffer.alloc(8 * mib);
  const file = openSync(path, 'r');
  try {
    for (let offset = 0; ; offset += chunk.length) {
      const length = readSync(file, chunk, 0, chunk.length, offset);
      if (length === 0) break;
      for (let at = 0; at < length; at += pageBytes) {
        const names = (block: number): boolean => chunk.readUInt32LE(at + block * 512 + 4) === wanted;
        if ([0, 1, 2, 3, 4, 5, 6, 7].every(names)) found.push((offset + at) / pageBytes);
      }
    }
  } finally {
    closeSync(file);
  }
  expect(found, `page ${wanted} of the pattern in ${path}`).toHaveLength(1);
  return found[0] ?? 0;
}

describeInLab('the check of what arrived', () => {
  const holdDirectory = mkdtempSync(join(tmpdir(), 'novacron-exactness-'));
  let stage: MoveStage;
  let guest: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2, holdDirectory });
    guest = await stage.guest({ name: 'exact', octet: 120, memoryMib: 192, dataMib: 48 });
  }, stageMsMax);
  afterAll(async () => {
    await stage.lower();
    rmSync(holdDirectory, { recursive: true });
  }, stageMsMax);

  const memoryFile = (host: LabHost): string => {
    const directory = join(stage.lab.directories.memory, host.name);
    const [name] = readdirSync(directory).filter((file) => file.startsWith(`${guest.vm}.`)
      && !file.endsWith('.arrived'));
    return join(directory, name ?? '');
  };
  const plant = (fault: object): void => writeFileSync(
    plantedFile(holdDirectory, guest.vm),
    JSON.stringify({ side: 'source', mark: null, ...fault }));
  const plantMissedPage = async (checkAfterMs: number): Promise<void> => plant({
    fault: 'skipped', page: physicalPage(memoryFile(await guest.host()), patternPage), checkAfterMs,
  });
  const resolve = async (choice: 'accept' | 'cold'): Promise<void> => {
    const request = stage.freshRequest();
    const { outcome } = await runLifecycle(stage.client, {
      step: 'resolve', input: { version: 1, vm: guest.vm, request, choice } });
    expect(outcome).toMatchObject({ kind: 'completed', runState: 'running' });
  };
  /** A move that has missed the page and goes on as soon as it is allowed to. */
  const startMissing = async (target: LabHost): Promise<Move> => {
    const move = await stage.move({
      vm: guest.vm, target: target.name, policy: {
        postCopy: 'never', bandwidthBytesPerSecond: 20_000_000, downtimeBudgetMs: 10,
      },
    });
    await until('a second round', async () => {
      const { progress, outcome } = (await stage.view(move.migration)).status;
      if (outcome !== null) throw new Error(`it ended before: ${JSON.stringify(outcome)}`);
      return (progress?.round ?? 0) >= 1 ? true : null;
    }, 60_000);
    return move;
  };
  const letEnd = async ({ migration }: Move): Promise<void> => {
    await stage.command(migration, { kind: 'set-downtime-budget', downtimeBudgetMs: 400 });
  };
  /** Moves while the page is rewritten faster than the check can end. */
  const moveDamaged = async (): Promise<{
    outcome: Extract<MigrationOutcome, { kind: 'damaged' }>; source: LabHost; target: LabHost;
  }> => {
    const [source, target] = [await guest.host(), await guest.otherHost()];
    await plantMissedPage(3_000);
    await guest.begin(load);
    const move = await startMissing(target);
    await letEnd(move);
    const outcome = await move.outcome;
    rmSync(plantedFile(holdDirectory, guest.vm));
    if (outcome.kind !== 'damaged') {
      throw new Error(JSON.stringify('exactness' in outcome ? outcome.exactness : outcome));
    }
    expect(outcome.exactness).toMatchObject({ damagedPageCount: 1, wrongPageCount: 1 });
    expect(await stage.entry(guest.vm)).toMatchObject({ phase: 'unsettled', owner: target.name });
    expect(await stage.remainsOn(source, guest.vm), 'the source image is kept').not.toEqual([]);
    return { outcome, source, target };
  };
  /** The guest answers no more: it stands. */
  const counterStands = async (): Promise<void> => {
    await guest.outside.mark();
    await new Promise((done) => { setTimeout(done, 1_500); });
    expect((await guest.outside.report()).echo.gapMsMax).toBeGreaterThan(1_000);
  };

  it('finds nothing in an undisturbed move, and says what that cost', async () => {
    const { exactness } = await guest.moveAndExpect();
    expect(exactness).toMatchObject({ kind: 'exact', wrongPageCount: 0, damagedPageCount: 0 });
    const { source, target } = exactness ?? {};
    expect(source?.pageCount).toBe(192 * mib / pageBytes);
    expect(target?.pageCount).toBe(192 * mib / pageBytes);
    console.info(`192 MiB: source ${JSON.stringify(source)}, target ${JSON.stringify(target)}`);
  });

  it('repairs a page that a scan missed before the guest sees it', async () => {
    const target = await guest.otherHost();
    await plantMissedPage(0);
    const before = await guest.begin(load);
    const move = await startMissing(target);
    await stage.command(move.migration, { kind: 'pause' });
    await guest.outside.witness({ op: 'stop' });
    // The witness looks at its pages in turn: the pattern has just been looked at when the move
    // goes on, and is looked at again only after the rest of its data.
    const { pagesChecked } = await guest.outside.witness({ op: 'verify' });
    await until('the sweep over the pattern', async () => {
      const status = await guest.outside.witness({ op: 'status' });
      return status.pagesChecked >= pagesChecked + patternPages + 64 ? true : null;
    }, 60_000);
    await letEnd(move);
    await stage.command(move.migration, { kind: 'resume' });
    const outcome = await move.outcome;
    rmSync(plantedFile(holdDirectory, guest.vm));
    expect(outcome).toMatchObject({
      kind: 'completed',
      exactness: { kind: 'repaired', repairedPageCount: 1, damagedPageCount: 0 },
    });
    await guest.expectAt(target, before, 1);
  });

  it('keeps a VM standing that wrote a missed page, also over a restart, and lets it go on', async () => {
    const { target, source } = await moveDamaged();
    await counterStands();
    await stage.killAndRestart(`host-${target.name}`);
    await counterStands();
    await resolve('accept');
    await guest.outside.mark();
    const { counter } = await guest.outside.witness({ op: 'stop' });
    expect(counter).toBeGreaterThan(0);
    const entry = await stage.untilOwned(guest.vm, 20_000);
    expect(entry).toMatchObject({ owner: target.name });
    await stage.expectClean(source, guest.vm);
    const { selfCheckFailures } = await guest.outside.witness({ op: 'verify' });
    expect(selfCheckFailures, 'the guest has seen it, as the operator accepted').toBeGreaterThan(0);
  });

  it('boots it cold where the operator wants that', async () => {
    const { target, source } = await moveDamaged();
    const { epoch } = await stage.entry(guest.vm);
    await resolve('cold');
    const entry = await stage.untilOwned(guest.vm, 20_000);
    expect(entry).toMatchObject({ owner: target.name, epoch: epoch + 1, lastStarted: epoch + 1 });
    await stage.expectClean(source, guest.vm);
  });
});
