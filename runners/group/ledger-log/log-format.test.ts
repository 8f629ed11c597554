import { describe, expect, test } from 'vitest';
import type { LogLine } from '../ownership/state.ts';
import { encodeHeader, encodeLines, headerBytes, scanSegment } from './log-format.ts';

const line = (index: number): LogLine => ({
  version: 1, index, atMs: 1, proposer: { role: 'control', name: 'c' },
  event: { kind: 'renew', vm: 'v' as never, epoch: index },
  change: { vm: null, host: null, ended: null },
});
const segment = (...records: Buffer[]): Buffer =>
  Buffer.concat([encodeHeader('segment', 1), ...records]);

describe('a segment', () => {
  test('reads back what was written', () => {
    const bytes = segment(encodeLines([line(1), line(2)]), encodeLines([line(3)]));
    expect(scanSegment(bytes)).toEqual({
      firstIndex: 1, lines: [line(1), line(2), line(3)], validBytes: bytes.length, problem: null,
    });
  });

  test('torn at any byte it keeps the whole records and is not damaged', () => {
    const first = encodeLines([line(1)]);
    const whole = segment(first, encodeLines([line(2), line(3)]));
    const firstEnd = headerBytes + first.length;
    for (let size = firstEnd; size < whole.length; size += 1) {
      const { lines, validBytes, problem } = scanSegment(whole.subarray(0, size));
      expect([lines.length, validBytes, problem]).toEqual([1, firstEnd, null]);
    }
  });

  test('zeroes or garbage behind the last record are a torn tail', () => {
    const good = segment(encodeLines([line(1)]));
    for (const tail of [Buffer.alloc(100), Buffer.alloc(3_000, 0x7b)]) {
      const { validBytes, problem } = scanSegment(Buffer.concat([good, tail]));
      expect([validBytes, problem]).toEqual([good.length, null]);
    }
  });

  test('any changed byte before the last record is damage', () => {
    const first = encodeLines([line(1)]);
    const whole = segment(first, encodeLines([line(2)]));
    for (let at = 0; at < headerBytes + first.length; at += 1) {
      const bytes = Buffer.from(whole);
      bytes[at] = (bytes[at] as number) ^ 0x10;
      expect(scanSegment(bytes).problem, `byte ${at}`).not.toBeNull();
    }
  });

  test('an unknown version is refused, not guessed', () => {
    const bytes = encodeHeader('segment', 1);
    bytes.writeUInt32BE(2, 8);
    expect(scanSegment(bytes).problem).not.toBeNull();
  });
});
