/**
 * The control worker as a function with everything real: a guest of the lab moves while nothing of
 * the control plane runs but short invocations with the platform's payload, and often nothing.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { commandIn } from '../../lab/processes.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { MoveStage, stageMsMax } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const execute = promisify(execFile);
const invoker = fileURLToPath(new URL('../workflows/support/invoke-lambda.ts', import.meta.url));
/** Two seconds of work: the function begins to end three seconds before its deadline. */
const deadlineMs = 5_000;
/** The build of the lab's control workers, which the function is an instance of. */
const buildId = 'lab';

describeInLab('a control worker that is only invoked', () => {
  let stage: MoveStage;
  let guest: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
    guest = await stage.guest({ name: 'served', octet: 180, dataMib: 64 });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  /** One cold invocation; answers how long it worked and what was left of its deadline, ms. */
  async function invoke(): Promise<{ readonly workedMs: number; readonly leftMs: number }> {
    const [program = '', ...args] = commandIn(stage.lab.plan.controlNamespace, [
      process.execPath, invoker, String(deadlineMs), buildId]);
    const { stdout } = await execute(program, args, {
      env: { ...process.env, NOVACRON_CONFIG: join(stage.lab.directories.data, 'control.json') },
      timeout: deadlineMs + 60_000,
    });
    return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as Awaited<ReturnType<typeof invoke>>;
  }

  it('brings a real move to its end, which outlives five invocations', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    await stage.process('control').kill();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: { bandwidthBytesPerSecond: 1_500_000 } });
    const invocations = [];
    while (invocations.length < 5) invocations.push(await invoke());
    const { status } = await stage.client.workflow.getHandle(migration).describe();
    expect(status.name).toBe('RUNNING');
    expect(await stage.entry(guest.vm)).toMatchObject({ phase: 'preparing', epoch: 1 });
    // Whoever commands it is answered by the next invocation.
    const command = stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    command.catch(() => undefined);
    let ended = false;
    void outcome.then(() => { ended = true; });
    while (!ended && invocations.length < 12) invocations.push(await invoke());
    await command;
    console.info(`invocations, ms: ${JSON.stringify(invocations)}`);
    expect(await outcome).toMatchObject({ kind: 'completed', warnings: [] });
    for (const { leftMs } of invocations) expect(leftMs).toBeGreaterThan(0);
    await guest.expectAt(target, before, 1);
  });
});
