/**
 * A guest whose disk is on a volume server: a move copies no block of it, the gate knows one writer
 * only, and neither the way to the volume nor its server may die and take the guest along.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { hostStateDirectory } from '../../lab/compose.ts';
import { volumeProcesses } from '../../lab/volumes.ts';
import { diskPath, vmPaths, type VmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { lightLoad, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const volume = { name: 'shared-data', sizeBytes: 128 * mib };
const load = { ...lightLoad, diskBytesPerSecond: 2_000_000 };

describeInLab('a shared volume', () => {
  let stage: MoveStage;
  let guest: StageGuest;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2, volumes: [{ ...volume, vm: 'sharer' }] });
    guest = await stage.guest({
      name: 'sharer', octet: 180, volume, commandLine: 'novacron.disk=16M',
    });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  const pathsOn = async (): Promise<VmPaths> =>
    vmPaths(join(hostStateDirectory(stage.lab, await guest.host()), 'vms'), guest.vm);
  const gateLog = (): string => readFileSync(stage.lab.logPath(volumeProcesses.gate), 'utf8');

  it('goes along without a block being copied, there and back', async () => {
    for (const epoch of [2, 3]) {
      const { figures } = await guest.moveAndExpect({ load });
      expect(figures.diskBytesSent).toBe(0);
      expect(gateLog()).toContain(`Raise sharer shared-data epoch ${epoch}: Ok`);
      expect(existsSync(diskPath(await pathsOn(), 'data'))).toBe(false);
      const { diskBytesChecked } = await guest.outside.witness({ op: 'status' });
      expect(diskBytesChecked, 'the guest read its disk back').toBeGreaterThan(0);
      console.info(`downtime ${figures.downtimeMs.toFixed(1)} ms of `
        + `${figures.totalMs.toFixed(0)} ms`);
    }
  });

  it('outlives the runner, its way to the volume, and the gate', async () => {
    const before = await guest.begin(load);
    const host = await guest.host();
    const record = join((await pathsOn()).directory, 'data.link.json');
    const pidIn = (): number => (JSON.parse(readFileSync(record, 'utf8')) as { pid: number }).pid;
    const first = pidIn();
    await stage.killAndRestart(`host-${host.name}`);
    expect(pidIn(), 'the way to the volume is not the runner\'s').toBe(first);

    await guest.outside.mark();
    const killedAtMs = performance.now();
    process.kill(first, 'SIGKILL');
    await until('another link', () => {
      try {
        return pidIn() === first ? null : true;
      } catch {
        return null;
      }
    }, 20_000);
    const written = async (): Promise<number> => (await guest.outside.report()).ackedWrites;
    const then = await written();
    await until('writes go on', async () => ((await written()) > then ? true : null), 20_000);
    console.info(`link killed: writes after ${(performance.now() - killedAtMs).toFixed(0)} ms`);

    const gate = stage.lab.started(volumeProcesses.gate);
    await gate.kill();
    await sleep(1_000);
    await stage.lab.start(gate.spec);
    const restartedAtMs = performance.now();
    const stood = await written();
    await until('writes go on', async () => ((await written()) > stood ? true : null), 30_000);
    console.info('gate away for a second: writes '
      + `${(performance.now() - restartedAtMs).toFixed(0)} ms after it was back`);
    await guest.expectWhole(before);
    expect((await stage.entry(guest.vm)).epoch).toBe(before.entry.epoch);
  });
});
