/** Runners that are killed in mid-copy: the move goes on with what has arrived, disks included. */
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { describeInLab } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax } from '../support/move-stage.ts';
import { ResumedMoves, told } from '../support/resumed-move.ts';

describeInLab('a copy goes on', () => {
  let stage: MoveStage;
  let moves: ResumedMoves;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    moves = await ResumedMoves.make(stage, 120);
  }, stageMsMax);
  afterEach(() => stage.endOpenMove(moves.guest.vm), stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it.each([
    ['source', 'memory'], ['target', 'memory'], ['target', 'disk'], ['source', 'disk'],
  ] as const)('after its %s runner was killed while %s was copied', async (side, phase) => {
    const result = await moves.move({
      phase,
      happens: (source, target) =>
        stage.killAndRestart(`host-${(side === 'source' ? source : target).name}`),
    });
    console.info(told(`${side} runner killed, ${phase}`, result));
    expect(result.sentAgain).toBeLessThan(0.1);
  });
});
