/** The configurations that the guides show are ones that the processes take. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { operatorConfig } from '../cli/operator-config.ts';
import { controlConfig, hostConfig, ledgerConfig } from '../runners/config.ts';

const guide = readFileSync(join(import.meta.dirname, '../docs/guides/real-hosts.md'), 'utf8');
const samples = [...guide.matchAll(/^```json\n(.*?)^```/gms)].map(([, text]) => text ?? '');

describe('the guide for real hosts', () => {
  it.each([
    ['ledger', ledgerConfig], ['control worker', controlConfig], ['operator', operatorConfig],
    ['host', hostConfig],
  ].map(([name, schema], index) => ({ name, schema, index })))(
    'shows a configuration of a $name', ({ schema, index }) => {
      const sample: unknown = JSON.parse(samples[index] ?? '');
      const parsed = (schema as typeof hostConfig).safeParse(sample);
      expect(parsed.error?.issues ?? []).toEqual([]);
    });
  it('shows no other', () => {
    expect(samples.length).toBe(4);
  });
});
