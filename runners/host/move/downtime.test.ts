import fc from 'fast-check';
import { expect, test } from 'vitest';
import { clockOffset, downtimeParts } from './downtime.ts';

test('parts sum to the downtime whatever the order of the marks', () => {
  const mark = fc.double({ min: 0, max: 50, noNaN: true });
  fc.assert(
    fc.property(fc.array(mark, { minLength: 7, maxLength: 7 }), (marks) => {
      const [a, b, c, d, e, f, g] = marks as [
        number, number, number, number, number, number, number,
      ];
      const parts = downtimeParts({
        stopEventMs: 10, stoppedMs: a, memoryInMs: b, deviceInMs: c, flushedMs: d,
        committedMs: e, gateRaisedMs: f, startedMs: g, resumeEventMs: 60,
      });
      const sum = Object.values(parts).reduce((total, part) => total + part, 0);
      expect(sum).toBeCloseTo(50, 9);
      expect(Math.min(...Object.values(parts))).toBeGreaterThanOrEqual(0);
    }),
  );
});

test('a flush hidden behind the device state costs nothing', () => {
  const parts = downtimeParts({
    stopEventMs: 0, stoppedMs: 1, memoryInMs: 2, deviceInMs: 5, flushedMs: 4, committedMs: 6,
    gateRaisedMs: 7, startedMs: 8, resumeEventMs: 9,
  });
  expect(parts.flushMs).toBe(0);
  expect(parts.deviceStateMs).toBe(3);
});

test('the offset comes from the shortest round trip', () => {
  const offset = clockOffset([
    { sentMs: 0, peerMs: 150, receivedMs: 100 },
    { sentMs: 200, peerMs: 301, receivedMs: 202 },
  ]);
  expect(offset).toEqual({ offsetMs: 100, errorMs: 1 });
});
