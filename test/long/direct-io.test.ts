/**
 * Guests that read their disk while they move, eight reads of 512 KiB at any moment, on a host disk
 * that others saturate. Through the host's cache nothing may be missed. Past it the disk writes into
 * memory unseen: preflight refuses that, and here the engine moves it all the same, to show why.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { EngineLab, missingParts } from '../e2e/engine-lab.ts';
import type { LabDisk } from '../e2e/engine-lab.ts';
import { obstaclesOf } from '../support/obstacles.ts';
import { checkedBytes, missedBy } from '../support/checked-move.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`moves with direct I/O are skipped: ${lacking} missing`);

const load = 'novacron.readers=8';
const moveCount = 10;

describe.skipIf(lacking !== null)('a saturated disk', () => {
  const dir = mkdtempSync(join(tmpdir(), 'novacron-direct-io-'));
  const others: ChildProcess[] = [];
  let lab: EngineLab;

  beforeAll(async () => {
    lab = new EngineLab();
    await lab.open();
    const busy = join(dir, 'busy');
    fillDisk(busy);
    for (let count = 0; count < 6; count += 1) {
      // They end with this process, whatever ends it.
      const loop = 'while kill -0 "$1"; do dd if="$0" of=/dev/null bs=4M iflag=direct; done';
      others.push(spawn('sh', ['-c', loop, busy, String(process.pid)], { stdio: 'ignore' }));
    }
  });
  afterAll(async () => {
    for (const child of others) child.kill('SIGKILL');
    await lab.close();
    rmSync(dir, { recursive: true });
  });

  /** A running guest that reads, and the pages that tracking missed in each of ten moves. */
  const missedReading = async (disk: LabDisk): Promise<readonly number[]> => {
    fillDisk(disk.path);
    const source = await lab.vmm({ memoryBytes: checkedBytes, vcpuCount: 1, load, disk });
    await source.ticked(30);
    expect(await obstaclesOf(source)).toEqual(
      disk.direct ? expect.arrayContaining(['block node disk uses O_DIRECT'])
        : expect.not.arrayContaining([expect.stringContaining('O_DIRECT')]));
    const missed: number[] = [];
    while (missed.length < moveCount) missed.push(await missedBy(lab, source, { disk }));
    expect(source.log).not.toContain('a reader of');
    source.kill();
    console.info(
      `aio=${disk.aio} O_DIRECT=${disk.direct}: pages missed by tracking a move: ${missed.join(' ')}`);
    return missed;
  };

  test.each(['threads', 'io_uring'] as const)('through the cache, aio=%s', async (aio) => {
    const missed = await missedReading({ path: join(dir, `${aio}.img`), aio, direct: false });
    expect(missed).toEqual(missed.map(() => 0));
  });

  test.each(['native', 'io_uring'] as const)('past the cache, aio=%s', async (aio) => {
    const missed = await missedReading({ path: join(dir, `${aio}-direct.img`), aio, direct: true });
    // How many is a matter of chance; that there are any is what preflight refuses for.
    expect(missed.some((count) => count > 0)).toBe(true);
  });
});

/** A disk whose every page differs from all others, so that no lost one looks like another. */
function fillDisk(path: string): void {
  const file = openSync(path, 'w');
  const block = Buffer.alloc(8 * mib);
  for (let count = 0; count < 16; count += 1) writeSync(file, randomFillSync(block));
  closeSync(file);
}
