import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { EpochGate } from './epoch-gate.ts';

let directory = '';
let path = '';
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'novacron-epoch-gate-'));
  path = join(directory, 'epoch.json');
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});
const ignored = (): void => undefined;

test('a raise is durable before it returns and survives a restart', async () => {
  const gate = await EpochGate.open(path);
  expect(gate.epoch).toBe(0);
  await gate.raise(7);
  expect(JSON.parse(await readFile(path, 'utf8'))).toEqual({ version: 1, epoch: 7 });
  const again = await EpochGate.open(path);
  expect(again.epoch).toBe(7);
  await expect(again.raise(6)).rejects.toMatchObject({ code: 'ownership/refused' });
  expect(() => again.enter({ epoch: 6, onRaised: ignored })).toThrow(/ownership\/refused/);
  await again.raise(7);
});

test('a raise is durable, then in force, then acknowledged', async () => {
  const gate = await EpochGate.open(path);
  let told = 0;
  let durableWhenTold = 0;
  const inForce = Promise.withResolvers<void>();
  const low = gate.enter({
    epoch: 1,
    onRaised: (epoch) => {
      expect(epoch).toBe(2);
      told += 1;
      durableWhenTold = (JSON.parse(readFileSync(path, 'utf8')) as { epoch: number }).epoch;
      inForce.resolve();
    },
  });
  const high = gate.enter({
    epoch: 5,
    onRaised: () => {
      told += 100;
    },
  });
  let raised = false;
  const raising = gate.raise(2).then(() => {
    raised = true;
  });
  await inForce.promise;
  expect([told, durableWhenTold]).toEqual([1, 2]);
  expect(low.valid).toBe(false);
  expect(() => gate.enter({ epoch: 1, onRaised: ignored })).toThrow(/ownership\/refused/);
  await new Promise((resolve) => {
    setTimeout(resolve, 30);
  });
  expect(raised).toBe(false);
  low.leave();
  low.leave();
  await raising;
  expect(high.valid).toBe(true);
  expect(gate.epoch).toBe(2);
});

test('a raise that can not be made durable changes nothing', async () => {
  const gate = await EpochGate.open(join(directory, 'gone', 'epoch.json'));
  const writer = gate.enter({
    epoch: 1,
    onRaised: () => {
      throw new Error('told of a gate that is not up');
    },
  });
  await expect(gate.raise(2)).rejects.toThrow();
  expect([gate.epoch, writer.valid]).toEqual([0, true]);
  gate.enter({ epoch: 1, onRaised: ignored }).leave();
});

test('a drain that does not end says so, and repeating the raise goes on waiting', async () => {
  const gate = await EpochGate.open(path);
  const writer = gate.enter({ epoch: 0, onRaised: ignored });
  await expect(gate.raise(3, { drainTimeoutMs: 20 })).rejects.toMatchObject({
    code: 'vmm/timeout',
  });
  const repeated = gate.raise(3, { drainTimeoutMs: 1000 });
  writer.leave();
  await repeated;
});

test('a damaged file is an error, never epoch 0', async () => {
  await writeFile(path, '{"version":1,"epo');
  await expect(EpochGate.open(path)).rejects.toMatchObject({ code: 'host/files' });
});

test('whatever raises race, the epoch never falls and no lower writer passes', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 1, maxLength: 12 }),
      async (epochs) => {
        await rm(path, { force: true });
        const gate = await EpochGate.open(path);
        let highest = 0;
        await Promise.all(
          epochs.map(async (epoch) => {
            try {
              const pass = gate.enter({ epoch, onRaised: () => pass.leave() });
              await gate.raise(epoch);
              highest = Math.max(highest, epoch);
              expect(gate.epoch).toBeGreaterThanOrEqual(epoch);
              if (gate.epoch > epoch) expect(pass.valid).toBe(false);
            } catch (error) {
              expect(error).toMatchObject({ code: 'ownership/refused' });
            }
          }),
        );
        expect(gate.epoch).toBe(highest);
        expect((await EpochGate.open(path)).epoch).toBe(highest);
      },
    ),
    { numRuns: 30 },
  );
});
