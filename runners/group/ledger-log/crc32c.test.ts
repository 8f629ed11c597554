import { expect, test } from 'vitest';
import { crc32c } from './crc32c.ts';

test('the examples of RFC 3720, appendix B.4, and going on from a part', () => {
  expect(crc32c(Buffer.alloc(32))).toBe(0x8a9136aa);
  expect(crc32c(Buffer.alloc(32, 0xff))).toBe(0x62a8ab43);
  const counted = Buffer.from(Array.from({ length: 32 }, (_, n) => n));
  expect(crc32c(counted)).toBe(0x46dd794e);
  expect(crc32c(counted.subarray(5), crc32c(counted.subarray(0, 5)))).toBe(0x46dd794e);
});
