import { describe, expect, it } from 'vitest';
import { partSample, summariseParts, tellParts } from './engine-summary.ts';

const line = (part: string, ms: number, bytes: number | null) =>
  partSample.parse({ part, run: 1, ms, bytes });

describe('summariseParts', () => {
  const parts = summariseParts([
    line('scan-clean', 0.4, null), line('memcpy', 20, 200_000_000),
    line('pread-pwrite', 100, 200_000_000), line('scan-clean', 0.9, null),
    line('pread-pwrite', 50, 200_000_000), line('scan-clean', 0.5, null),
  ]);
  const [scan, memcpy, copy] = parts;
  it('gives times as times, with the prototype beside them', () => {
    expect(scan).toMatchObject({
      part: 'scan-clean', runs: 3, unit: 'ms', median: 0.5, min: 0.4, max: 0.9,
      prototype: [0.37, 0.43], ofMemcpy: null,
    });
  });
  it('gives bytes as a rate, with memcpy beside it', () => {
    expect(memcpy).toMatchObject({ unit: 'GB/s', median: 10, ofMemcpy: 1, prototype: null });
    expect(copy).toMatchObject({ unit: 'GB/s', median: 2, min: 2, max: 4, ofMemcpy: 0.2 });
  });
  it('has no ratio without memcpy', () => {
    expect(summariseParts([line('digest', 1, 1_000_000)])[0]?.ofMemcpy).toBeNull();
  });
  it('shows one line a part', () => {
    const text = tellParts(parts).split('\n');
    expect(text).toHaveLength(4);
    expect(text[1]).toMatch(/scan-clean\s+ms\s+0\.5\s+0\.4\s+0\.9\s+-\s+0\.37-0\.43/);
    expect(text[3]).toMatch(/pread-pwrite\s+GB\/s\s+2\s+2\s+4\s+0\.2\s+2\.1-2\.3/);
  });
});
