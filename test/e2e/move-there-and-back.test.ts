/**
 * Guests with one and with two vCPUs and a disk that is being written move there and back, at rest
 * and under heavy dirtying; the bytes on the disk are checked by the guest that wrote them.
 */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { mib } from '../../contracts/units.ts';
import type { GuestLoad } from '../../lab/bench/measure.ts';
import { runCommand } from '../../lab/command.ts';
import { hostStateDirectory } from '../../lab/compose.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { diskPath, vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { lightLoad, MoveStage, stageMsMax } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const diskLoad = { diskBytesPerSecond: 4_000_000 };
const heavyLoad: GuestLoad = {
  dirtyBytesPerSecond: 50_000_000, workingSetBytes: 16 * mib, order: 'random', pages: 'full',
  ...diskLoad,
};

describeInLab('there and back', () => {
  let stage: MoveStage;

  beforeAll(async () => {
    stage = await MoveStage.raise({ hostCount: 2 });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  describe.each([
    { vcpuCount: 1, format: 'raw' as const, octet: 110 },
    { vcpuCount: 2, format: 'qcow2' as const, octet: 111 },
  ])('$vcpuCount vCPU, $format', ({ vcpuCount, format, octet }) => {
    let guest: StageGuest;
    beforeAll(async () => {
      guest = await stage.guest({
        name: `traveller-${octet}`, octet, vcpuCount, memoryMib: 192, dataMib: 16,
        disk: {
          format, sizeBytes: 1024 * mib,
          sourceImage: format === 'raw' ? stage.image.dataRaw : stage.image.dataQcow2,
        },
        commandLine: 'novacron.disk=16M',
      });
    }, stageMsMax);

    it.each([
      { what: 'there, lightly loaded', load: { ...lightLoad, ...diskLoad } },
      { what: 'back, under heavy dirtying', load: heavyLoad },
    ])('$what', async ({ what, load }) => {
      const { figures } = await guest.moveAndExpect({ load });
      const { diskBytesChecked } = await guest.outside.witness({ op: 'status' });
      expect(diskBytesChecked, 'the guest read its disk back').toBeGreaterThan(0);
      const parts = Object.values(figures.downtimeParts).reduce((sum, part) => sum + part, 0);
      expect(parts).toBeCloseTo(figures.downtimeMs, 3);
      expect(figures.diskBytesSent).toBeGreaterThan(0);
      console.info(`${what}: ${figures.totalMs.toFixed(0)} ms, downtime `
        + `${figures.downtimeMs.toFixed(1)} ms, ${figures.rounds} rounds, ${figures.convergence}`);
    });

    it('leaves a disk without faults', async () => {
      const host = await guest.host();
      const paths = vmPaths(join(hostStateDirectory(stage.lab, host), 'vms'), guest.vm);
      const { outcome } = await runLifecycle(stage.client, {
        step: 'stop',
        input: { version: 1, vm: guest.vm, request: stage.freshRequest(), graceMs: 30_000 },
      });
      expect(outcome).toMatchObject({ kind: 'completed', runState: 'stopped' });
      const disk = diskPath(paths, 'data');
      if (format === 'qcow2') {
        const report = JSON.parse(await runCommand([
          'qemu-img', 'check', '--output=json', '-f', format, disk])) as Record<string, unknown>;
        expect(report).toMatchObject({ 'check-errors': 0 });
        expect([report['corruptions'] ?? 0, report['leaks'] ?? 0]).toEqual([0, 0]);
      } else {
        // The guest's own file system, unmounted by its shutdown.
        await runCommand(['e2fsck', '-f', '-n', disk]);
      }
      await guest.discard();
      await stage.expectClean(host, guest.vm);
    });
  });
});
