/**
 * A move of a real guest by the whole product in the lab, to and fro: Temporal, ledger, control
 * worker, two host runners, and a client outside that keeps its one connection.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DirectPlant } from '../../lab/bench/engines/direct.ts';
import type { BenchEngine } from '../../lab/bench/engine.ts';
import { measureRun, meetGuest } from '../../lab/bench/measure.ts';
import { connectLabLedger, imageDirectory, servicesOf } from '../../lab/compose.ts';
import { placeGuestImage, systemQemuProgram } from '../../lab/guest-image.ts';
import { Lab, labDirectories } from '../../lab/lab.ts';
import { namespaceExists } from '../../lab/network/network.ts';
import { processesOfLab } from '../../lab/processes.ts';
import { existsSync } from 'node:fs';
import { describeInLab } from '../support/lab-needs.ts';

const address = '198.18.1.100';
const mebibyte = 1_048_576;
/** Composing takes 15 s and a boot 10 s on a quiet machine; three times that on a busy one. */
const setupMsMax = 180_000;

describeInLab('a move in the lab', () => describe.each([1, 2])('%i vCPU', (vcpuCount) => {
  let lab: Lab;
  let plant: DirectPlant | null = null;
  let engine: BenchEngine;

  beforeAll(async () => {
    lab = await Lab.raise({ hostCount: 2 });
    const image = placeGuestImage(imageDirectory(lab));
    plant = await DirectPlant.raise({
      lab, image, program: systemQemuProgram,
      policy: { postCopy: 'when-needed', downtimeBudgetMs: 100 },
    });
    engine = await plant.engine({
      memoryBytes: 256 * mebibyte, vcpuCount, address: `${address}/24`, diskBytes: 0,
      macAddress: '52:4e:43:00:00:10',
      commandLine: `${image.kernelCommandLine} novacron.ip=${address}/24 novacron.pattern=32M`,
    });
    await engine.boot();
    await (await meetGuest(lab, address)).close();
  }, setupMsMax);

  afterAll(async () => {
    await plant?.close();
    await lab.lower();
    expect(lab.plan.namespaces.filter(namespaceExists)).toEqual([]);
    expect(processesOfLab(lab.id)).toEqual([]);
    expect(Object.values(labDirectories(lab.id)).filter(existsSync)).toEqual([]);
  }, setupMsMax);

  it.each([1, 2])('keeps memory, database and connections (move %i)', async (run) => {
    const services = servicesOf(lab);
    if (services === null) throw new Error('the lab has no services');
    const ledger = await connectLabLedger(lab, services);
    const [before] = await ledger.listVms();
    const record = await measureRun({
      lab, engine, run, address, limitMs: 60_000,
      load: {
        dirtyBytesPerSecond: 50_000_000, workingSetBytes: 16 * mebibyte, order: 'random',
        pages: 'full',
      },
    });
    expect(record).toMatchObject({
      outcome: 'completed', guestVerified: true, lostWrites: 0, reason: null });
    expect(record.ackedWrites).toBeGreaterThan(100);
    expect(record.wireBytes).toBeGreaterThan(16 * mebibyte);
    const [after] = await ledger.listVms();
    expect(after?.epoch).toBeGreaterThan(before?.epoch ?? Infinity);
    expect(after?.owner).not.toBe(before?.owner);
    await ledger.close();
  }, setupMsMax);
}));
