/**
 * What a move survives on its way: a link that is cut for up to a minute, runners that die twice,
 * and a control plane that stands still, for a while or for good, from STOP on.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { cutLink } from '../../lab/faults/power.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { holdFiles } from '../../runners/host/hold-before-resume.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import { ResumedMoves, told } from '../support/resumed-move.ts';

/** The target proposes Settle by itself 30 s after its start; the sweep of the source follows. */
const settledAloneMsMax = 60_000;

describeInLab('a move goes on', () => {
  const holdDirectory = mkdtempSync(join(tmpdir(), 'novacron-resume-'));
  let stage: MoveStage;
  let moves: ResumedMoves;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2, holdDirectory });
    moves = await ResumedMoves.make(stage, 120);
  }, stageMsMax);
  afterEach(() => stage.endOpenMove(moves.guest.vm), stageMsMax);
  afterAll(async () => {
    await stage.lower();
    rmSync(holdDirectory, { recursive: true });
  }, stageMsMax);

  const cutFor = (link: 'data' | 'temporal' | 'ledger', seconds: number) =>
    async (source: LabHost): Promise<void> => {
      const mend = await cutLink(stage.lab, source, link);
      await sleep(seconds * 1_000);
      await mend();
    };

  it.each([
    ['data', 1, 'memory'], ['data', 5, 'memory'], ['data', 5, 'disk'], ['data', 30, 'memory'],
    ['data', 60, 'memory'], ['data', 60, 'disk'], ['temporal', 5, 'memory'],
    ['ledger', 5, 'memory'],
  ] as const)('after a cut of its %s link of %i s, %s', async (link, seconds, phase) => {
    const result = await moves.move({ phase, happens: cutFor(link, seconds) });
    console.info(told(`${link} link cut for ${seconds} s, ${phase}`, result));
    expect(result.sentAgain).toBeLessThan(0.1);
  });

  it('after its source and then its target runner were killed', async () => {
    const result = await moves.move({
      phase: 'memory',
      happens: async (source, target) => {
        await stage.killAndRestart(`host-${source.name}`);
        await sleep(3_000);
        await stage.killAndRestart(`host-${target.name}`);
      },
    });
    console.info(told('source and then target runner killed, memory', result));
    expect(result.sentAgain).toBeLessThan(0.2);
  });

  /** The last of this file: control that is gone for good does not come back. */
  it.each(['a while', 'good'] as const)('without control for %s from STOP on', async (how) => {
    const { guest } = moves;
    const before = await guest.begin();
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const { hold, held } = holdFiles(holdDirectory, guest.vm);
    writeFileSync(hold, '');
    // Nobody waits for its end: a client that asks a server that is gone for good asks for ever.
    const migration = await stage.begin({ vm: guest.vm, target: target.name });
    await until('it stands', () => existsSync(held) || null, 60_000);
    const away = ['temporal', 'control'].map((name) => stage.lab.started(name));
    for (const one of away) {
      if (how === 'good') await one.kill();
      else one.signal('SIGSTOP');
    }
    rmSync(hold);
    const releasedMs = performance.now();
    const { counter } = before.status;
    await until('it answers', async () => {
      const seen = await guest.outside.witness({ op: 'status' });
      return seen.bootId === before.status.bootId && seen.counter > counter ? true : null;
    }, 5_000);
    const answeredMs = performance.now() - releasedMs;
    await stage.untilOwned(guest.vm, settledAloneMsMax);
    const settledMs = performance.now() - releasedMs;
    if (how === 'a while') {
      for (const one of away) one.signal('SIGCONT');
      await completed(stage.outcome(migration));
    } else {
      await stage.expectClean(source, guest.vm, settledAloneMsMax);
    }
    console.info(`control plane away for ${how}: answers after `
      + `${(answeredMs / 1000).toFixed(1)} s, settled after ${(settledMs / 1000).toFixed(1)} s`);
    await guest.expectAt(target, before, 1);
  });
});
