/** A VM with a network card in a namespace of our own: its frames pass where the gate is open. */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { missingParts } from './hypervisor-bench.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`the move with a network card is skipped: ${lacking} missing`);
const scenario = fileURLToPath(new URL('./hypervisor-nic-scenario.ts', import.meta.url));

describe.skipIf(lacking !== null)('a network card', () => {
  test('answers only where its gate is open, and moves with its VM', () => {
    const space = `nchv${process.pid}`;
    execFileSync('ip', ['netns', 'add', space]);
    try {
      const text = execFileSync('ip', ['netns', 'exec', space, process.execPath, scenario], {
        encoding: 'utf8',
        timeout: 100_000,
      });
      expect(JSON.parse(text.trim().split('\n').at(-1) ?? '')).toEqual({
        shut: false,
        open: true,
        obstacles: [],
        nics: [
          {
            name: 'eth0',
            macAddress: '52:54:00:ab:cd:01',
            address: '198.18.1.10/24',
            segment: 'lab',
          },
        ],
        movedShut: false,
        movedOpen: true,
        sourceTap: false,
        stillOpen: true,
        tapsLeft: false,
      });
    } finally {
      execFileSync('ip', ['netns', 'del', space]);
    }
  }, 120_000);
});
