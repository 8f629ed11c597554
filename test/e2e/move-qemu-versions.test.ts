/**
 * The whole product between the machine's QEMU (7.2 on Debian 12) and QEMU 10: guests with a disk in use move from the older to
 * the newer, between two of the newer, and back; a machine that the older does not know is refused.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { runCommand } from '../../lab/command.ts';
import { hostStateDirectory } from '../../lab/compose.ts';
import {
  cacheDirectory, readQemuProgram, systemQemuProgram,
} from '../../lab/guest-image.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import { diskPath, vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { missingForLab, tellSkipped } from '../support/lab-needs.ts';
import { lightLoad, MoveStage, stageMsMax } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';

const qemu10Description = join(cacheDirectory, 'qemu-10/qemu.json');
/** Major version of the machine's own QEMU; 0 when there is none. */
const ownMajor = Number(/version (\d+)/.exec(
  spawnSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).stdout ?? '')?.[1] ?? 0);
const missing = [
  ...missingForLab(), ...(existsSync(qemu10Description) ? [] : ['QEMU 10 (Debian 13, in .cache)']),
  ...(ownMajor < 10 ? [] : [`a QEMU of its own that is older than 10 (it has ${ownMajor})`]),
];
const load = { ...lightLoad, diskBytesPerSecond: 4_000_000 };

describe.runIf(missing.length === 0)('between an older QEMU and QEMU 10', () => {
  let stage: MoveStage;
  const versionOf = async (host: LabHost): Promise<string> => {
    const facts = (await stage.ledger.listHosts()).find(({ facts: { name } }) => name === host.name);
    return facts?.facts.qemuVersion ?? 'unknown';
  };
  const guestWith = (
    name: string, octet: number, more: { host: number; machineType: string; format: 'raw' | 'qcow2' },
  ): Promise<StageGuest> => stage.guest({
    name, octet, host: more.host, machineType: more.machineType, dataMib: 16,
    commandLine: 'novacron.disk=16M',
    disk: {
      format: more.format, sizeBytes: 1024 * mib,
      sourceImage: more.format === 'raw' ? stage.image.dataRaw : stage.image.dataQcow2,
    },
  });
  const moves = async (guest: StageGuest, number: number): Promise<void> => {
    const target = stage.lab.host(number);
    const { figures } = await guest.moveAndExpect({ load, target });
    const { diskBytesChecked, diskFailures } = await guest.outside.witness({ op: 'status' });
    expect(diskBytesChecked, 'the guest read its disk back').toBeGreaterThan(0);
    expect(diskFailures).toBe(0);
    expect(figures.diskBytesSent).toBeGreaterThan(0);
    console.info(`${guest.vm} to ${target.name} (QEMU ${await versionOf(target)}): `
      + `${figures.totalMs.toFixed(0)} ms, downtime ${figures.downtimeMs.toFixed(1)} ms`);
  };

  beforeAll(async () => {
    const ten = readQemuProgram(qemu10Description);
    stage = await MoveStage.raise({
      hostCount: 3, programOf: ({ number }) => (number === 1 ? systemQemuProgram : ten),
    });
    expect(await versionOf(stage.lab.host(2))).toMatch(/^10\./);
    expect(await versionOf(stage.lab.host(3))).toMatch(/^10\./);
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it.each([
    { format: 'raw' as const, octet: 130, way: [2, 3, 1] },
    { format: 'qcow2' as const, octet: 131, way: [2, 1] },
  ])('an old machine with a $format disk goes to the newer and home again: $way', async (row) => {
    const { format, octet, way } = row;
    const guest = await guestWith(`old-${format}`, octet, {
      host: 1, machineType: 'pc-i440fx-7.2', format });
    for (const number of way) await moves(guest, number);
    await guest.discard();
  });

  it('a new machine moves between the newer, and is refused by the older', async () => {
    const guest = await guestWith('new-machine', 132, {
      host: 2, machineType: 'pc-i440fx-10.0', format: 'qcow2' });
    await moves(guest, 3);
    const before = await guest.begin(load);
    const { outcome } = await stage.move({ vm: guest.vm, target: stage.lab.host(1).name });
    expect(await outcome).toMatchObject({
      kind: 'failed', runsOn: stage.lab.host(3).name, failure: { code: 'preflight/qemu' } });
    await guest.expectAt(stage.lab.host(3), before, 0);
    const path = diskPath(
      vmPaths(join(hostStateDirectory(stage.lab, stage.lab.host(3)), 'vms'), guest.vm), 'data');
    const { outcome: stopped } = await runLifecycle(stage.client, {
      step: 'stop',
      input: { version: 1, vm: guest.vm, request: stage.freshRequest(), graceMs: 30_000 },
    });
    expect(stopped).toMatchObject({ kind: 'completed', runState: 'stopped' });
    const report = JSON.parse(await runCommand([
      'qemu-img', 'check', '--output=json', '-f', 'qcow2', path])) as Record<string, unknown>;
    expect([report['check-errors'], report['corruptions'] ?? 0, report['leaks'] ?? 0])
      .toEqual([0, 0, 0]);
    await guest.discard();
  });
});

describe.runIf(missing.length > 0)('between an older QEMU and QEMU 10', () => {
  it('is not tried here', () => tellSkipped('between an older QEMU and QEMU 10', missing));
});
