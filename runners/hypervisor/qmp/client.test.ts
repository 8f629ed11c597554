import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { QmpClient } from './client.ts';
import { FakeVmm } from './fake-vmm.ts';
import { LineReader } from './line-reader.ts';

let directory = '';
let socketPath = '';
let endings: (() => void)[] = [];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'novacron-qmp-'));
  socketPath = join(directory, 'qmp.sock');
  endings = [];
});
afterEach(() => {
  for (const end of endings.toReversed()) end();
  rmSync(directory, { recursive: true, force: true });
});

async function pair(lineBytesMax?: number): Promise<{ fake: FakeVmm; qmp: QmpClient }> {
  const fake = await FakeVmm.start({ socketPath });
  const qmp = await QmpClient.connect({
    socketPath,
    timeoutMs: 1_000,
    ...(lineBytesMax === undefined ? {} : { lineBytesMax }),
  });
  endings.push(
    () => fake.close(),
    () => qmp.close(),
  );
  return { fake, qmp };
}

/** A peer that is given the connection and does what it likes. */
async function peer(behave: (socket: Socket) => void): Promise<void> {
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    endings.push(() => socket.destroy());
    behave(socket);
  });
  endings.push(() => server.close());
  await new Promise<void>((resolve) => {
    server.listen(socketPath, resolve);
  });
}
const greeting =
  '{"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":9}},"capabilities":[]}}\r\n';

describe('connecting', () => {
  test('no listener is vmm/gone', async () => {
    await expect(QmpClient.connect({ socketPath })).rejects.toMatchObject({ code: 'vmm/gone' });
  });
  test.each([
    ['silence', '', 'vmm/timeout'],
    ['something else', 'SSH-2.0-OpenSSH\r\n', 'vmm/protocol'],
    ['JSON that is no greeting', '{"hello":1}\n', 'vmm/protocol'],
    ['a greeting without an end', greeting, 'vmm/timeout'],
    ['an endless line', 'x'.repeat(70_000), 'vmm/protocol'],
  ])('%s ends with a code', async (_name, text, code) => {
    await peer((socket) => {
      socket.write(text);
    });
    await expect(
      QmpClient.connect({ socketPath, timeoutMs: 150, lineBytesMax: 65_536 }),
    ).rejects.toMatchObject({ code });
  });
});

describe('commands', () => {
  test('answers in any order find their commands, unknown ids are dropped', async () => {
    await peer((socket) => {
      socket.write(greeting);
      const waiting: { id: number; execute: string }[] = [];
      const reader = new LineReader((line) => {
        const request = JSON.parse(line) as { id: number; execute: string };
        if (request.execute === 'qmp_capabilities') {
          socket.write(`{"return":{},"id":${request.id}}\n`);
          return;
        }
        waiting.push(request);
        if (waiting.length < 3) return;
        socket.write('{"return":"nobody asked","id":4711}\n');
        for (const { id, execute } of waiting.toReversed()) {
          socket.write(`{"return":"${execute}","id":${id}}\n`);
        }
      });
      socket.on('data', (chunk) => {
        reader.push(chunk);
      });
    });
    const qmp = await QmpClient.connect({ socketPath });
    expect(await Promise.all(['a', 'b', 'c'].map((name) => qmp.execute(name)))).toEqual([
      'a',
      'b',
      'c',
    ]);
    qmp.close();
  });

  test('a stalled VMM is vmm/timeout; its late answer harms nobody', async () => {
    const { fake, qmp } = await pair();
    fake.stall();
    await expect(qmp.execute('query-status', { timeoutMs: 50 })).rejects.toMatchObject({
      code: 'vmm/timeout',
    });
    fake.resume();
    expect(await qmp.execute('query-status')).toMatchObject({ status: 'prelaunch' });
    expect(qmp.failure).toBeNull();
  });

  test('death in the middle of a command fails it at once', async () => {
    const { fake, qmp } = await pair();
    fake.stall();
    const asked = performance.now();
    const answer = qmp.execute('query-status', { timeoutMs: 10_000 });
    fake.close();
    await expect(answer).rejects.toMatchObject({ code: 'vmm/gone' });
    expect(performance.now() - asked).toBeLessThan(1_000);
  });

  test('a round trip costs little', async () => {
    const { qmp } = await pair();
    const took: number[] = [];
    for (let round = 0; round < 200; round += 1) {
      const start = performance.now();
      await qmp.execute('query-status');
      took.push(performance.now() - start);
    }
    took.sort((a, b) => a - b);
    console.log(`QMP round trip: p50 ${took[100]?.toFixed(3)} ms, p99 ${took[198]?.toFixed(3)} ms`);
    expect(took[100]).toBeLessThan(20);
  });
});

describe('what a broken VMM may say', () => {
  test.each([
    ['no JSON', 'Segmentation fault\n'],
    ['a wrong shape', '{"id":"seven","return":{}}\n'],
    ['an array', '[1,2,3]\n'],
    ['an error without a command', '{"error":{"class":"GenericError","desc":"parse error"}}\n'],
    ['a line beyond the limit', Buffer.alloc(100_000, 'x')],
  ])('%s breaks the connection with vmm/protocol', async (_name, text) => {
    const { fake, qmp } = await pair(65_536);
    fake.stall();
    const answer = qmp.execute('query-status');
    fake.sendRaw(text);
    await expect(answer).rejects.toMatchObject({ code: 'vmm/protocol' });
    expect((await qmp.gone).code).toBe('vmm/protocol');
  });

  test('random bytes never throw outside a command', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
        rmSync(socketPath, { force: true });
        const fake = await FakeVmm.start({ socketPath });
        const qmp = await QmpClient.connect({ socketPath, lineBytesMax: 65_536 });
        fake.sendRaw(Buffer.concat([bytes, Buffer.from('\n')]));
        await qmp.execute('query-status').catch((error: unknown) => {
          expect(error).toMatchObject({ code: 'vmm/protocol' });
        });
        qmp.close();
        fake.close();
      }),
      { numRuns: 60 },
    );
  });
});

describe('events', () => {
  test('a wait ends by event, by time, by cancel; a match chooses', async () => {
    const { qmp } = await pair();
    const late = qmp.expectEvent('RESUME', { timeoutMs: 20, match: () => false });
    const cancelled = qmp.expectEvent('RESUME', { timeoutMs: 5_000 });
    cancelled.cancel();
    const seen = qmp.expectEvent('RESUME', { timeoutMs: 5_000 });
    const heard: string[] = [];
    const unlisten = qmp.onEvent((event) => heard.push(event.name));
    await qmp.execute('cont');
    const event = await seen.arrived;
    expect(event.sequence).toBe(0);
    expect(event.vmmStampUs).toBeGreaterThan(1e15);
    await expect(late.arrived).rejects.toMatchObject({ code: 'vmm/timeout' });
    unlisten();
    await qmp.execute('stop');
    expect(heard).toEqual(['RESUME']);
    expect(qmp.seenSince('STOP', 1)).toHaveLength(1);
    expect(qmp.seenSince('STOP', 2)).toHaveLength(0);
  });
});

describe('LineReader', () => {
  test('finds the same lines however the stream is cut', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.string().map((text) => text.replace(/[\r\n]/g, '')),
          { maxLength: 10 },
        ),
        fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 50 }),
        (lines, cuts) => {
          const stream = Buffer.from(lines.map((line) => `${line}\r\n`).join(''));
          const found: string[] = [];
          const reader = new LineReader((line) => found.push(line));
          let at = 0;
          for (let index = 0; at < stream.length; index += 1) {
            const length = cuts[index % cuts.length] ?? 1;
            expect(reader.push(stream.subarray(at, at + length))).toBe(true);
            at += length;
          }
          expect(found).toEqual(lines.map((line) => line.trim()).filter((line) => line !== ''));
        },
      ),
    );
  });
  test('holds no more than its limit', () => {
    const reader = new LineReader(() => undefined, 10);
    expect(reader.push(Buffer.from('12345\n12345'))).toBe(true);
    expect(reader.push(Buffer.from('67890'))).toBe(true);
    expect(reader.push(Buffer.from('1'))).toBe(false);
  });
});
