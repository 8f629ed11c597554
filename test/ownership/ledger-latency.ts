/**
 * Measures one proposal at a time through the real server (loopback TLS, real disk) and prints one
 * JSON line: `node test/ownership/ledger-latency.ts [count]`.
 */
import { asHost, control, hostA, hostB, runningVm, servedLedger, vm } from '../support/ledger-fixtures.ts';

const count = Number(process.argv[2] ?? 2_000);
const quantile = (sorted: readonly number[], part: number): number =>
  Number((sorted[Math.floor((sorted.length - 1) * part)] ?? NaN).toFixed(3));

const ledger = await servedLedger([control, asHost(hostA), asHost(hostB)]);
try {
  await runningVm(ledger);
  const client = ledger.as(control);
  const sample = async (action: (index: number) => Promise<unknown>) => {
    const times: number[] = [];
    for (let index = 0; index < count; index += 1) {
      const startedMs = performance.now();
      await action(index);
      times.push(performance.now() - startedMs);
    }
    times.sort((x, y) => x - y);
    return { p50Ms: quantile(times, 0.5), p99Ms: quantile(times, 0.99), maxMs: quantile(times, 1) };
  };
  await sample(() => client.readVm(vm));
  const read = await sample(() => client.readVm(vm));
  const desire = (index: number) => client.propose([
    { kind: 'desire', vm, epoch: 1, desired: index % 2 === 0 ? 'stopped' : 'running' },
  ]);
  await sample(desire);
  const before = { ...ledger.core.figures };
  const propose = await sample(desire);
  const { figures } = ledger.core;
  process.stdout.write(`${JSON.stringify({
    count, read, propose,
    meanDecideMs: Number(((figures.decideMs - before.decideMs) / count).toFixed(3)),
    meanSyncMs: Number(((figures.syncMs - before.syncMs) / (figures.syncs - before.syncs)).toFixed(3)),
  })}\n`);
} finally {
  await ledger.close();
}
