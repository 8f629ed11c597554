/**
 * Explores the ledger's protocol with bounds of your choice and prints one JSON line:
 * `node --max-old-space-size=12000 test/ownership/explore.ts --epochs 4 --writes 2 --moves 2
 * --crashes 2 --hosts 2` (these are the bounds of docs/models/local2.cfg).
 */
import { parseArgs } from 'node:util';
import { decide } from '../../runners/group/ownership/decide.ts';
import { explore } from './explorer.ts';

const { values } = parseArgs({
  options: {
    epochs: { type: 'string', default: '4' }, writes: { type: 'string', default: '2' },
    moves: { type: 'string', default: '2' }, crashes: { type: 'string', default: '2' },
    hosts: { type: 'string', default: '2' }, created: { type: 'boolean', default: false },
  },
});
const startedMs = performance.now();
const result = explore(decide, {
  hosts: Number(values.hosts), epochMax: Number(values.epochs), writeMax: Number(values.writes),
  moveMax: Number(values.moves), crashMax: Number(values.crashes), postCopy: true,
  created: values.created, stateMax: 40_000_000,
});
process.stdout.write(`${JSON.stringify({
  ...result, seconds: Math.round(performance.now() - startedMs) / 1000,
})}\n`);
process.exitCode = result.violation === null ? 0 : 1;
