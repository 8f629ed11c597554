/**
 * `novacron doctor [--json] [--fresh]`: what this host can do, by trying it, and what follows.
 * Exit status 0 when VMs can run and move here, 1 when something that is needed is missing.
 */
import { parseArgs } from 'node:util';
import { engineOf, findingsOf } from './findings.ts';
import { observeHost } from './observe.ts';

const usage = `novacron doctor [--json] [--fresh]
  --json   the last line on stdout is one JSON object
  --fresh  probe KVM again instead of using the answer of the last 24 hours`;
const marks = { good: '✓', limited: '–', missing: '✗' } as const;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      json: { type: 'boolean' }, fresh: { type: 'boolean' }, help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help === true) {
    console.log(usage);
    return 0;
  }
  const seen = await observeHost({ fresh: values.fresh === true });
  const findings = findingsOf(seen);
  const engine = engineOf(seen);
  const isReady = findings.every(({ state }) => state !== 'missing');
  if (values.json === true) {
    const { accelerator } = seen.accelerator;
    console.log(JSON.stringify({ version: 1, ready: isReady, engine, accelerator, findings, seen }));
  } else {
    for (const { subject, state, found, follows } of findings) {
      console.log(`${marks[state]} ${subject}: ${found}\n    ${follows}`);
    }
    console.log(`\nMemory engine: ${engine}; accelerator: ${seen.accelerator.accelerator}.`);
  }
  return isReady ? 0 : 1;
}

process.exitCode = await main();
