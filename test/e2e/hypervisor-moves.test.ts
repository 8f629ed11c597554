/** Real QEMUs, a real guest: moves, and what is left after a move that was given up late. */
import { existsSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import { mib } from '../../contracts/units.ts';
import { diskPath } from '../../runners/hypervisor/vm-directory.ts';
import type { QemuBinary } from '../../runners/hypervisor/qemu-binary.ts';
import {
  awaitTick,
  bootIds,
  HypervisorBench,
  missingParts,
  moveVm,
  pause,
  probeQemu10,
  qemu7,
  startGuest,
  ticks,
} from './hypervisor-bench.ts';

const lacking = missingParts();
const qemu10 = lacking === null ? await probeQemu10() : null;
if (lacking !== null) console.warn(`hypervisor moves are skipped: ${lacking} missing`);
else if (qemu10 === null)
  console.warn('moves with QEMU 10 are skipped: .cache/qemu-10/qemu.json missing');

const seven = lacking === null ? await qemu7() : null;
interface Pair {
  readonly name: string;
  readonly source: QemuBinary;
  readonly target: QemuBinary;
}
const pairs: readonly Pair[] =
  seven === null
    ? []
    : [
        { name: '7 to 7', source: seven, target: seven },
        ...(qemu10 === null
          ? []
          : [
              { name: '10 to 10', source: qemu10, target: qemu10 },
              { name: '7 to 10', source: seven, target: qemu10 },
              { name: '10 to 7', source: qemu10, target: seven },
            ]),
      ];

/** Waits until the firmware has written variables and is at rest for a moment. */
async function written(file: string): Promise<void> {
  const blank = readFileSync(file);
  let before = blank;
  for (let look = 0; look < 60; look += 1) {
    await pause(1_000);
    const now = readFileSync(file);
    if (!now.equals(blank) && now.equals(before)) return;
    before = now;
  }
  throw new Error(`the firmware has written no variables to ${file}`);
}

describe.skipIf(lacking !== null).each(pairs)(
  'QEMU $name',
  ({ source: sourceQemu, target: targetQemu }) => {
    let bench: HypervisorBench;
    beforeAll(() => {
      bench = new HypervisorBench();
    }, 60_000);
    afterAll(async () => {
      await bench.dispose();
    }, 60_000);

    // Two guests at a time, one a core: each of these tests has hosts of its own.
    describe('a simple guest', () => test.concurrent.each(['kept', 'finished'] as const)(
      'given up after the device state, the source goes on and moves at the second try (mirror %s)',
      async (mirror) => {
        const name = `late-${mirror}`;
        const source = await bench.host(`src-${mirror}`, { qemu: sourceQemu });
        const target = await bench.host(`dst-${mirror}`, { qemu: targetQemu });
        await startGuest(source, bench.spec(name));
        await awaitTick(source, name, 10);
        await moveVm({ name, source, target, mirror, abortAfterState: true });
        const before = ticks(source, name).at(-1) ?? 0;
        await awaitTick(source, name, before + 10);
        expect((await target.look(vmName(name))).runState).toBe('absent');
        const { downtimeMs, stateBytes } = await moveVm({ name, source, target, mirror });
        await awaitTick(target, name, before + 30);
        const all = [...ticks(source, name), ...ticks(target, name)];
        for (let index = 1; index < all.length; index += 1) {
          // The line being printed at the stop may be cut in two, never lost or repeated.
          expect((all[index] ?? 0) - (all[index - 1] ?? 0)).toBeLessThanOrEqual(2);
          expect(all[index]).toBeGreaterThan(all[index - 1] ?? 0);
        }
        expect(bootIds(source, name)).toHaveLength(1);
        expect(bootIds(target, name)).toHaveLength(0);
        expect((await source.monitor(vmName(name))).qmp.failure).toBeNull();
        await source.deleteVm(vmName(name));
        expect((await target.inspect(vmName(name))).exactnessObstacles).toEqual([]);
        const disk = readFileSync(diskPath(target.paths(vmName(name)), 'root'), 'latin1');
        expect([...disk.matchAll(/block (\d{16})/g)].length).toBeGreaterThan(10);
        console.log(
          `${mirror}: downtime with cp ${downtimeMs.toFixed(1)} ms, state ${stateBytes} bytes`,
        );
        await target.deleteVm(vmName(name));
      },
      120_000,
    ));

    test.concurrent('two vCPUs on q35 with a qcow2 disk', async () => {
      const name = 'wide';
      const source = await bench.host('wide-a', { qemu: sourceQemu });
      const target = await bench.host('wide-b', { qemu: targetQemu });
      await startGuest(
        source,
        bench.spec(name, {
          vcpuCount: 2,
          machineType: 'pc-q35-7.2',
          disks: [
            {
              name: 'root',
              format: 'qcow2',
              sizeBytes: 8 * mib,
              sourceImage: null,
              volume: 'local',
            },
            { name: 'data', format: 'raw', sizeBytes: 4 * mib, sourceImage: null, volume: 'local' },
          ],
        }),
      );
      await awaitTick(source, name, 5);
      await moveVm({ name, source, target, mirror: 'kept' });
      const at = ticks(source, name).at(-1) ?? 0;
      await awaitTick(target, name, at + 5);
      expect(bootIds(target, name)).toHaveLength(0);
      const there = await target.inspect(vmName(name));
      expect(there).toMatchObject({
        vcpuCount: 2,
        machineType: 'pc-q35-7.2',
        exactnessObstacles: [],
      });
      expect(there.disks.map(({ name: disk, format }) => [disk, format])).toEqual([
        ['root', 'qcow2'],
        ['data', 'raw'],
      ]);
      await source.deleteVm(vmName(name));
      await target.deleteVm(vmName(name));
    }, 300_000);

    test.concurrent('UEFI flash and a cloud-init seed on q35', async () => {
      if (!existsSync('/usr/share/OVMF/OVMF_CODE_4M.fd')) {
        console.warn('the move with UEFI is skipped: OVMF missing');
        return;
      }
      const name = 'firm';
      const vm = vmName(name);
      const source = await bench.host('firm-a', { qemu: sourceQemu });
      const target = await bench.host('firm-b', { qemu: targetQemu });
      const boot = {
        kind: 'disk', firmware: 'uefi', cloudInitUserData: '#cloud-config\n',
      } as const;
      await startGuest(source, bench.spec(name, { machineType: 'pc-q35-7.2', boot }));
      await written(source.paths(vm).firmwareVars);
      await moveVm({ name, source, target, mirror: 'kept', abortAfterState: true });
      const { stateBytes } = await moveVm({ name, source, target, mirror: 'kept' });
      await pause(500);
      const there = await target.inspect(vm);
      expect(there).toMatchObject({ runState: 'running', boot, exactnessObstacles: [] });
      expect(readFileSync(target.paths(vm).seed)).toEqual(readFileSync(source.paths(vm).seed));
      // The variables go with the device state and are written to the target's own file. The
      // firmware runs on there, and on flash it only clears bits of what it had.
      const [left, goesOn] = [source, target].map((host) => readFileSync(host.paths(vm).firmwareVars));
      expect(goesOn).toHaveLength(left?.length ?? 0);
      const differing = left?.findIndex((byte, at) => ((goesOn?.[at] ?? 0) & ~byte) !== 0);
      expect(differing, 'a byte that was not in the source\'s flash').toBe(-1);
      console.log(`UEFI: state ${stateBytes} bytes`);
      await source.deleteVm(vm);
      await target.deleteVm(vm);
    }, 300_000);
  },
);
