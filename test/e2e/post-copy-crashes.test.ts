/**
 * Runners that are killed while the guest runs at the target without all of its pages: whoever
 * comes after them goes on, the guest answers again, and nothing of it is stale or lost.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { mib } from '../../contracts/units.ts';
import type { GuestLoad } from '../../lab/bench/measure.ts';
import { missingForLab, tellSkipped } from '../support/lab-needs.ts';
import { completed, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const missing = missingForLab();
/** Everything of the working set is dirty again before it is sent. */
const heavyLoad: GuestLoad = {
  dirtyBytesPerSecond: 40_000_000, workingSetBytes: 16 * mib, order: 'random', pages: 'full',
};
/** The working set takes 5 s, and is all that has to go over so slowly. */
const thinBytesPerSecond = 3_000_000;
const swift = { postCopy: 'when-needed', bandwidthBytesPerSecond: 8_000_000 } as const;

describe.runIf(missing.length === 0)('kill -9 in post-copy', () => {
  let stage: MoveStage;
  let guest: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    guest = await stage.guest({ name: 'torn', octet: 130 });
  }, stageMsMax);
  afterEach(() => stage.endOpenMove(guest.vm), stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it.each([
    { sides: ['target'] }, { sides: ['source'] }, { sides: ['source', 'target'] },
  ] as const)('of the runner of $sides',
    async ({ sides }) => {
      const before = await guest.begin(heavyLoad);
      const hosts = { source: await guest.host(), target: await guest.otherHost() };
      const { migration, outcome } = await stage.move({
        vm: guest.vm, target: hosts.target.name, policy: swift });
      // It is obeyed at the end of the round.
      await stage.untilSent(migration);
      await stage.command(migration, { kind: 'post-copy-now' });
      await until('half of the round is sent', async () => {
        const { progress } = (await stage.view(migration)).status;
        return progress !== null && progress.bytesDone * 2 >= progress.bytesPlanned ? true : null;
      }, 60_000);
      await stage.command(
        migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: thinBytesPerSecond });
      await until('the target runs', async () => {
        const { owner, epoch, lastStarted } = await stage.entry(guest.vm);
        return owner === hosts.target.name && lastStarted === epoch ? true : null;
      }, 60_000);
      expect((await stage.entry(guest.vm)).ready?.missingPageCount).toBeGreaterThan(2_000);
      const killedAtMs = performance.now();
      await Promise.all(sides.map((side) => stage.killAndRestart(`host-${hosts[side].name}`)));
      await completed(outcome);
      const wholeMs = (performance.now() - killedAtMs).toFixed(0);
      console.info(`${sides.join(' and ')}: whole ${wholeMs} ms after the kill`);
      await guest.expectAt(hosts.target, before, 1);
      for (const side of sides) {
        const wanted = side === 'target'
          ? /"missingPages":[1-9]\d*,.*"post-copy goes on"/ : /"the frozen image is served again"/;
        expect(stage.process(`host-${hosts[side].name}`).log()).toMatch(wanted);
      }
    });
});

describe.runIf(missing.length > 0)('kill -9 in post-copy', () => {
  it('is not tried here', () => tellSkipped('kill -9 in post-copy', missing));
});
