/** The protocol as built, in every interleaving within bounds. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { decide } from '../../runners/group/ownership/decide.ts';
import { explore } from './explorer.ts';

const small = {
  hosts: 2, epochMax: 3, writeMax: 1, moveMax: 2, crashMax: 1, postCopy: true, created: false,
  stateMax: 2_000_000,
};

describe('explorer', () => {
  test('a VM that was just created', () => {
    const { violation, trace, states } = explore(decide, { ...small, created: true });
    expect({ violation, trace }).toEqual({ violation: null, trace: [] });
    expect(states).toBeGreaterThan(50_000);
  }, 180_000);

  test('three hosts', () => {
    const { violation, trace, states } = explore(decide, {
      ...small, hosts: 3, epochMax: 3, moveMax: 1, crashMax: 1,
    });
    expect({ violation, trace }).toEqual({ violation: null, trace: [] });
    expect(states).toBeGreaterThan(50_000);
  }, 300_000);

  // In a process of its own: 1.2 GB, which a test worker is not given.
  test('the bounds of docs/models/local2.cfg', async () => {
    const script = fileURLToPath(new URL('explore.ts', import.meta.url));
    const child = spawn(process.execPath, ['--max-old-space-size=4000', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    for await (const chunk of child.stdout) text += String(chunk);
    const { violation, trace, states } = JSON.parse(text);
    expect({ violation, trace }).toEqual({ violation: null, trace: [] });
    expect(states).toBeGreaterThan(1_000_000);
  }, 300_000);
});
