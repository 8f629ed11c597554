import { describe, expect, it } from 'vitest';
import type { WitnessStatus } from '../client/witness-line.ts';
import { withComparison } from './disk-series.ts';
import { qemuOptions } from './engines/qemu-process.ts';
import { directTotal } from './engines/direct.ts';
import { peerParameters, peerSettings } from './engines/qemu.ts';
import { brokenRun, guestDamage, judgeRun, loadRequest } from './measure.ts';
import type { RunRecord } from './measure.ts';
import { guestOrder, progressText, runSeries, turns } from './migrate-series.ts';
import type { SeriesOptions, SeriesPlace } from './migrate-series.ts';
import type { BenchEngine } from './engine.ts';
import { blackoutOf, totalPartsOf } from './observer.ts';
import { summariseRuns } from './summary.ts';

const run = (engine: RunRecord['engine'], fields: Partial<RunRecord>): RunRecord => ({
  engine, run: 1, outcome: 'completed', totalMs: 100, totalPartsMs: null, wholeMs: 900,
  controlCpuSeconds: 0.1, othersCpuSeconds: 0.1, downtimeMs: 10, outsideGapMsMax: 20,
  outsideGapBeganMs: -1, redisGapMsMax: 30, restingGapMsP99: 3, wireBytes: 1000, cpuSeconds: 1,
  guestCpuSeconds: 0.5,
  rounds: 3, guestVerified: true, ackedWrites: 5, lostWrites: 0, reason: null,
  dirtyBytesPerSecond: 0, details: {}, ...fields,
});

describe('blackoutOf', () => {
  const event = (name: string, stampUs: number) => ({ name, stampUs, status: null });
  it('takes the stop that the resume ends, not an earlier one', () => {
    expect(blackoutOf(
      [event('STOP', 1_000), event('RESUME', 2_000), event('STOP', 50_000)],
      [event('RESUME', 57_500)])).toEqual({ beganAtMs: 50, downtimeMs: 7.5 });
  });
  it('answers null without a resume, or with one that came before any stop', () => {
    expect(blackoutOf([event('STOP', 1)], [])).toBeNull();
    expect(blackoutOf([event('STOP', 9)], [event('RESUME', 5)])).toBeNull();
  });
});

describe('the parts of the total', () => {
  const event = (name: string, stampUs: number, status: string | null = null) =>
    ({ name, stampUs, status });
  const target = [event('RESUME', 93_000), event('MIGRATION', 95_000, 'completed')];
  it('are cut at QEMU\'s own events and sum to its total', () => {
    const parts = totalPartsOf([
      event('MIGRATION', 10_000, 'setup'), event('MIGRATION', 12_000, 'active'),
      event('STOP', 80_000), event('MIGRATION', 94_000, 'completed'),
    ], target);
    expect(parts).toEqual({
      connectMs: 2, diskMs: 0, memoryMs: 68, downtimeMs: 13, closingMs: 2 });
    expect(Object.values(parts ?? {}).reduce((sum, part) => sum + part, 0)).toBe(85);
  });
  it('are not made up when an event is missing', () => {
    expect(totalPartsOf([event('STOP', 1)], target)).toBeNull();
  });
  const totalParts = { connectMs: 20, diskMs: 1, memoryMs: 60, downtimeMs: 9, closingMs: 10 };
  it('of direct are the session\'s when every page was there at the start', () => {
    const figures = { totalMs: 100, totalParts, mode: 'pre-copy' } as const;
    expect(directTotal(figures, 500)).toEqual({ totalMs: 100, totalPartsMs: totalParts });
  });
  it('of direct go on until a post-copy is over', () => {
    const { totalMs, totalPartsMs } = directTotal(
      { totalMs: 100, totalParts, mode: 'post-copy' }, 500);
    expect(totalMs).toBe(590);
    expect(totalPartsMs).toEqual({ ...totalParts, closingMs: 500 });
  });
});

describe('judgeRun', () => {
  const completed = { outcome: 'completed' } as const;
  const failed = { outcome: 'failed', reason: 'no route' } as const;
  const distrust = 'the link emulator could not keep up';
  it('counts a completed, verified run', () => {
    expect(judgeRun({ move: completed, damage: null, distrust: null }))
      .toEqual({ outcome: 'completed', guestVerified: true, reason: null });
  });
  it('does not count a run on a late link, whatever became of it', () => {
    expect(judgeRun({ move: completed, damage: null, distrust }))
      .toEqual({ outcome: 'link-late', guestVerified: true, reason: distrust });
    expect(judgeRun({ move: failed, damage: null, distrust })).toEqual({
      outcome: 'link-late', guestVerified: false, reason: `${distrust}; failed: no route` });
  });
  it('never excuses a damaged guest', () => {
    expect(judgeRun({ move: completed, damage: 'booted again', distrust }))
      .toEqual({ outcome: 'guest-damaged', guestVerified: false, reason: 'booted again' });
  });
  it('keeps the reason of a failure', () => {
    expect(judgeRun({ move: failed, damage: null, distrust: null }))
      .toEqual({ outcome: 'failed', guestVerified: false, reason: 'no route' });
  });
});

describe('guestDamage', () => {
  const status = (fields: Partial<WitnessStatus>): WitnessStatus => ({
    bootId: 'a', counter: 10, selfCheckFailures: 0, pagesWritten: 0, pagesChecked: 0,
    patternBytes: 0, dataBytes: 0, running: true, dirtyRateAchievedBytesPerSecond: 0,
    longestGapMs: 0, ...fields,
  });
  const writes = { ackedWrites: 9, lostWrites: 0, failedWrites: 0, connectionLost: false };
  const before = status({});
  const after = status({ counter: 20 });
  it('finds nothing wrong with a guest that went on', () => {
    expect(guestDamage({ before, after, readBack: writes })).toBeNull();
  });
  it.each([
    ['booted', { after: status({ counter: 20, bootId: 'b' }) }],
    ['counter', { after: status({ counter: 10 }) }],
    ['self-check', { after: status({ counter: 20, selfCheckFailures: 1 }) }],
    ['lost', { readBack: { ...writes, lostWrites: 1 } }],
    ['connection', { readBack: { ...writes, connectionLost: true } }],
    ['acknowledged', { readBack: { ...writes, ackedWrites: 0 } }],
  ])('names what is wrong: %s', (word, change) => {
    expect(guestDamage({ before, after, readBack: writes, ...change })).toContain(word);
  });
});

describe('withComparison', () => {
  const comparison = {
    blockBytes: 1, blocks: 9, dataBlocks: 3, sourceDigest: 'a', targetDigest: 'a',
    unequalBlocks: 0, firstUnequal: [], tookMs: 1,
  };
  it('leaves a run alone whose disks were equal, and one that failed anyway', () => {
    const good = run('direct', { details: { comparison, heldMs: 5 } });
    expect(withComparison(good)).toEqual({ ...good, details: { heldMs: 5 }, comparison });
    const failed = run('direct', { guestVerified: false, outcome: 'failed', reason: 'x' });
    expect(withComparison(failed)).toMatchObject({ outcome: 'failed', reason: 'x' });
  });
  it('fails a run whose disks differ or were not compared', () => {
    const unequal = { ...comparison, unequalBlocks: 2, firstUnequal: [4, 7] };
    expect(withComparison(run('direct', { details: { comparison: unequal } }))).toMatchObject({
      guestVerified: false, outcome: 'guest-damaged',
      reason: '2 of 9 disk blocks differ at Started, the first is 4',
    });
    expect(withComparison(run('direct', {})).reason).toMatch(/not compared/);
  });
});

describe('summariseRuns', () => {
  it('leaves unverified runs out of medians and counts them', () => {
    const summary = summariseRuns([
      run('qemu', { totalMs: 100 }), run('qemu', { totalMs: 300 }), run('qemu', { totalMs: 200 }),
      run('qemu', { totalMs: 1, guestVerified: false, outcome: 'guest-damaged' }),
      run('qemu', { totalMs: null, guestVerified: false, outcome: 'timeout' }),
    ]);
    expect(summary.engines[0]).toMatchObject({ runs: 5, completed: 3, damaged: 1, failed: 1 });
    expect(summary.engines[0]?.figures.totalMs).toEqual({ median: 200, min: 100, max: 300 });
  });
  it('shows runs that could not be made, and leaves late links out of everything', () => {
    const summary = summariseRuns([
      run('qemu', { totalMs: 100 }), brokenRun('qemu', 2, new Error('no guest')),
      run('qemu', { totalMs: 900, outcome: 'link-late', reason: 'late' }),
    ]);
    expect(summary.engines[0]).toMatchObject(
      { runs: 3, completed: 1, damaged: 0, failed: 1, linkLate: 1 });
    expect(summary.engines[0]?.figures.totalMs).toEqual({ median: 100, min: 100, max: 100 });
    expect(brokenRun('qemu', 2, new Error('no guest'))).toMatchObject(
      { outcome: 'failed', guestVerified: false, reason: 'no guest', totalMs: null });
  });
  it('compares direct with every peer and with the best one per figure', () => {
    const summary = summariseRuns([
      run('direct', { totalMs: 40, downtimeMs: 6 }),
      run('qemu', { totalMs: 100, downtimeMs: 12 }),
      run('qemu-postcopy', { totalMs: 80, downtimeMs: 30 }),
    ]);
    expect(summary.ratios.qemu).toMatchObject({ totalMs: 0.4, downtimeMs: 0.5 });
    expect(summary.bestPeer.totalMs).toEqual({ engine: 'qemu-postcopy', ratio: 0.5 });
    expect(summary.bestPeer.downtimeMs).toEqual({ engine: 'qemu', ratio: 0.5 });
  });
  it('has no ratios when direct never completed', () => {
    const summary = summariseRuns([
      run('direct', { guestVerified: false, totalMs: null }), run('qemu', {})]);
    expect(summary.ratios).toEqual({});
  });
});

describe('a series', () => {
  it('interleaves, and every engine is first as often as the others', () => {
    const order = turns(['a', 'b', 'c'], 3);
    expect(order.map(({ engine }) => engine).join('')).toBe('abcbcacab');
    expect(order.filter(({ run: number }) => number === 2)).toHaveLength(3);
  });
  const series: SeriesOptions = {
    engines: ['direct', 'qemu'], runs: 1, memoryBytes: 1 << 30, vcpuCount: 2,
    dataBytes: 200_000_000, compressible: true, limitMs: 1, freshGuests: false,
    multifdChannelCount: 2,
    load: { dirtyBytesPerSecond: null, workingSetBytes: 128 << 20, order: 'random', pages: 'full' },
  };
  const image = {
    kernel: '/k', initrd: '/i', dataRaw: '/r', dataQcow2: '/q', kernelCommandLine: 'quiet',
    redisPort: 1, witnessPort: 2,
  };
  it('gives guests that live side by side addresses of their own', () => {
    const [first, second] = [guestOrder(series, image, 0), guestOrder(series, image, 1)];
    expect(first.address).not.toBe(second.address);
    expect(first.macAddress).not.toBe(second.macAddress);
    expect(first.commandLine).toBe('quiet novacron.ip=198.18.1.100/24 novacron.pattern=128M '
      + 'novacron.data=191M novacron.compressible=1');
  });
  const place = (engine: Partial<BenchEngine>, interrupted: AbortSignal): SeriesPlace => ({
    lab: {} as SeriesPlace['lab'], program: { command: ['q'], environment: {} }, image,
    makeDirect: async () => await Promise.resolve({ name: 'direct', ...engine } as BenchEngine),
    tell: () => undefined, link: null, interrupted,
  });
  const alone: SeriesOptions = { ...series, engines: ['direct'], runs: 3 };
  it('goes on after a run that could not be made, and records each', async () => {
    let boots = 0;
    const records = await runSeries(alone, place({
      boot: async () => await Promise.reject(new Error(`no guest ${boots += 1}`)),
      discard: async () => await Promise.resolve(),
    }, new AbortController().signal), () => undefined);
    expect(records.map(({ outcome, reason }) => [outcome, reason])).toEqual([
      ['failed', 'no guest 1'], ['failed', 'no guest 2'], ['failed', 'no guest 3']]);
  });
  it('boots no second guest beside one that could not be removed', async () => {
    let boots = 0;
    const records = await runSeries(alone, place({
      boot: async () => await Promise.reject(new Error(`no guest ${boots += 1}`)),
      discard: async () => await Promise.reject(new Error('it hangs')),
    }, new AbortController().signal), () => undefined);
    expect(boots).toBe(1);
    expect(records[2]).toMatchObject(
      { outcome: 'failed', reason: 'the guest before could not be removed: it hangs' });
  });
  it('begins nothing after an interrupt', async () => {
    const interrupt = new AbortController();
    let boots = 0;
    await expect(runSeries(alone, place({
      boot: async () => {
        boots += 1;
        interrupt.abort();
        return await Promise.reject(new Error('the lab is gone'));
      },
    }, interrupt.signal), () => undefined)).rejects.toThrow();
    expect(boots).toBe(1);
  });
  it('asks the witness for "as fast as it can" when no rate is given', () => {
    expect(loadRequest(series.load)['dirtyRateBytesPerSecond']).toBe(Number.MAX_SAFE_INTEGER);
  });
  it('starts a peer with plain RAM, its own address, and two monitors', () => {
    const options = qemuOptions({
      name: 'q', guest: guestOrder(series, image, 3), image, tap: 't3', diskPath: null,
      incoming: true, controlSocket: '/c', observerSocket: '/o',
    });
    expect(options.join(' ')).toContain('mac=52:4e:43:00:00:13');
    expect(options).not.toContain('-object');
    expect(options.filter((option) => option === '-qmp')).toHaveLength(2);
    expect(options.slice(-2)).toEqual(['-incoming', 'defer']);
  });
  it('gives the multifd peers, and only them, the channels that were asked for', () => {
    expect(peerParameters('qemu-multifd', 8)['multifd-channels']).toBe(8);
    expect(peerParameters('qemu-multifd-zstd', 4)).toMatchObject(
      { 'multifd-channels': 4, 'multifd-compression': 'zstd' });
    expect(peerParameters('qemu', 8)).not.toHaveProperty('multifd-channels');
  });
  it('tells how far it is', () => {
    expect(progressText({ number: 1, total: 9, engine: 'qemu', elapsedMs: 0 }))
      .toBe('run 1 of 9 (qemu), 0 s so far');
    expect(progressText({ number: 3, total: 10, engine: 'qemu', elapsedMs: 20_000 }))
      .toBe('run 3 of 10 (qemu), 20 s so far, about 80 s left');
  });
  it('lifts the bandwidth cap of every peer and keeps the shipped downtime limit', () => {
    for (const settings of Object.values(peerSettings)) {
      expect(settings.parameters['max-bandwidth']).toBeGreaterThan(1e10);
      expect(settings.parameters).not.toHaveProperty('downtime-limit');
    }
  });
});
