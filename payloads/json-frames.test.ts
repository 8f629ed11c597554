import fc from 'fast-check';
import { expect, test } from 'vitest';
import { limits } from '../contracts/limits.ts';
import { encodeFrame, FrameDecoder, FrameError } from './json-frames.ts';

test('messages survive any split of the stream', () => {
  fc.assert(
    fc.property(fc.array(fc.jsonValue()), fc.integer({ min: 1, max: 9 }), (messages, step) => {
      const stream = Buffer.concat(messages.map(encodeFrame));
      const decoder = new FrameDecoder();
      const seen: unknown[] = [];
      for (let at = 0; at < stream.length; at += step) {
        seen.push(...decoder.push(stream.subarray(at, at + step)));
      }
      expect(JSON.stringify(seen)).toBe(JSON.stringify(messages));
    }),
  );
});

test('oversized frames and garbage are errors, before any allocation', () => {
  const huge = Buffer.alloc(4);
  huge.writeUInt32BE(limits.controlFrameBytesMax + 1, 0);
  expect(() => new FrameDecoder().push(huge)).toThrow(FrameError);
  expect(() => new FrameDecoder().push(Buffer.from([0, 0, 0, 1, 0x7b]))).toThrow(FrameError);
  expect(() => encodeFrame('x'.repeat(limits.controlFrameBytesMax))).toThrow(FrameError);
});
