/**
 * The ledger's program: `serve | backup | restore | verify | dump`. Composition only: it reads the
 * configuration, puts the parts together and ends them in order.
 */
import { readdir } from 'node:fs/promises';
import { Command, CommanderError } from 'commander';
import type { Logger } from 'pino';
import { Counter, Gauge } from 'prom-client';
import type { Registry } from 'prom-client';
import { CodedError, failureReport } from '../../contracts/failures.ts';
import { openRevocationList } from '../../payloads/revocation.ts';
import { ledgerConfig, loadConfig } from '../config.ts';
import { raiseThisProcess } from '../cpu-priority.ts';
import { backupLedger, restoreLedger } from '../group/ledger-log/backup.ts';
import { lockDirectory } from '../group/ledger-log/directory-lock.ts';
import { loadLiveLog } from '../group/ledger-log/durable-log.ts';
import { directoryStorage } from '../group/ledger-log/log-storage.ts';
import { verifyLedger } from '../group/ledger-log/verify.ts';
import { createLogger, createMetrics, serveTelemetry } from '../telemetry.ts';
import { LedgerCore } from './core.ts';
import { serveLedger } from './server.ts';
import type { LedgerServer } from './server.ts';

const configOf = (path: string) => loadConfig({ path, schema: ledgerConfig });
const printJson = (value: unknown): void => void process.stdout.write(`${JSON.stringify(value)}\n`);

/** Storage of a directory that exists; a mistyped one must not come into being. */
async function existingStorage(dir: string) {
  await readdir(dir).catch((error: unknown) => {
    throw new CodedError('input/invalid', `${dir} can't be read`, error);
  });
  return directoryStorage(dir);
}

function addFigures(
  { registry, core, server }: { registry: Registry; core: LedgerCore; server: LedgerServer },
): void {
  const counters = [
    ['proposals', () => core.figures.proposals], ['refusals', () => core.figures.refusals],
    ['syncs', () => core.figures.syncs], ['disk_full', () => core.figures.diskFull],
    ['decide_milliseconds', () => core.figures.decideMs],
    ['sync_milliseconds', () => core.figures.syncMs],
  ] as const;
  for (const [name, read] of counters) {
    new Counter({
      name: `novacron_ledger_${name}_total`, help: `Ledger: ${name.replaceAll('_', ' ')}`,
      registers: [registry],
      collect() {
        this.reset();
        this.inc(read());
      },
    });
  }
  const gauges = [
    ['index', () => core.state.index], ['vms', () => core.state.vmCount],
    ['hosts', () => core.state.hostCount], ['connections', () => server.connectionCount()],
  ] as const;
  for (const [name, read] of gauges) {
    new Gauge({
      name: `novacron_ledger_${name}`, help: `Ledger: ${name}`, registers: [registry],
      collect() {
        this.set(read());
      },
    });
  }
}

/** Serves until SIGTERM or SIGINT; answers the exit code. */
async function serve(configPath: string): Promise<number> {
  const config = configOf(configPath);
  const logger: Logger = createLogger({
    process: 'ledger', name: 'ledger', level: config.logLevel,
  });
  // Four answers of the ledger lie inside every blackout.
  const unraised = await raiseThisProcess({ session: true });
  if (unraised !== null) logger.info({ why: unraised }, 'ordinary CPU priority');
  const storage = await directoryStorage(config.stateDir);
  const unlock = await lockDirectory(config.stateDir);
  const ended = Promise.withResolvers<number>();
  try {
    const core = await LedgerCore.open({
      storage, logger, leaseTtlMs: config.leaseTtlMs, onBroken: () => ended.resolve(1),
    });
    const revoked = openRevocationList({
      path: config.revokedPath, caPath: config.tls.caPath,
      onProblem: (err) => logger.error({ err }, 'the revocation list can not be read'),
    });
    const server = await serveLedger({
      core, logger, revoked, tls: config.tls,
      address: config.listen.address, port: config.listen.port,
    });
    const registry = createMetrics({ process: 'ledger', name: 'ledger' });
    addFigures({ registry, core, server });
    const telemetry = config.metrics === null ? null : await serveTelemetry({
      ...config.metrics, registry, logger, checks: { disk: () => void core.listHosts() },
    });
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.once(signal, () => ended.resolve(0));
    }
    logger.info({
      address: server.address, port: server.port, metricsPort: telemetry?.port ?? null,
      index: core.state.index, vms: core.state.vmCount, stateDir: config.stateDir,
    }, 'ready');
    const code = await ended.promise;
    await server.close();
    await telemetry?.close();
    await core.close();
    logger.info({ code }, 'stopped');
    return code;
  } finally {
    await unlock();
  }
}

async function dump(configPath: string, json: boolean): Promise<void> {
  const { stateDir } = configOf(configPath);
  const { state } = await loadLiveLog(await existingStorage(stateDir));
  if (json) return printJson(state.store());
  for (const { facts, cordoned } of state.hosts.values()) {
    process.stdout.write(`host ${facts.name}${cordoned ? ' (cordoned)' : ''}\n`);
  }
  for (const { entry } of state.vms.values()) {
    process.stdout.write(
      `vm ${entry.vm} ${entry.phase} epoch ${entry.epoch} owner ${entry.owner ?? '-'}`
      + ` desired ${entry.desired}: ${entry.cause}\n`);
  }
}

function program(exit: (code: number) => void): Command {
  const top = new Command('novacron-ledger').description('the ownership ledger').exitOverride();
  const command = (name: string, text: string): Command =>
    top.command(name).description(text).requiredOption('--config <file>', 'configuration (JSON)');
  command('serve', 'serve until SIGTERM').action(async ({ config }) => exit(await serve(config)));
  command('backup', 'copy the ledger, running or not, into an empty directory')
    .requiredOption('--to <dir>')
    .action(async ({ config, to }) => printJson(
      await backupLedger({ stateDir: configOf(config).stateDir, to, nowMs: Date.now() })));
  command('restore', 'make the state directory (empty) from a backup')
    .requiredOption('--from <dir>')
    .option('--complete', 'the ledger decided nothing after this backup')
    .option('--rolled-back', 'it may have: raise epochs, stop every VM until someone has looked')
    .action(async ({ config, from, complete, rolledBack }) => {
      if (Boolean(complete) === Boolean(rolledBack)) {
        throw new CodedError('input/invalid', 'write either --complete or --rolled-back');
      }
      printJson(await restoreLedger({
        from, stateDir: configOf(config).stateDir, nowMs: Date.now(),
        kind: complete ? 'complete' : 'rolled-back',
      }));
    });
  command('verify', 'check the log and every step in it, changing nothing')
    .action(async ({ config }) => {
      const report = await verifyLedger(await existingStorage(configOf(config).stateDir));
      printJson(report);
      exit(report.problems.length === 0 ? 0 : 1);
    });
  command('dump', 'print hosts and VMs')
    .option('--json', 'one JSON object')
    .action(({ config, json }) => dump(config, Boolean(json)));
  return top;
}

// `main.ts --config FILE` alone means serve, which is what process managers write.
const argv = process.argv.slice(2);
const withCommand = argv[0]?.startsWith('--config') ? ['serve', ...argv] : argv;
try {
  await program((code) => {
    process.exitCode = code;
  }).parseAsync(withCommand, { from: 'user' });
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else {
    const { code, detail } = error instanceof CodedError
      ? error : { code: 'internal' as const, detail: String(error) };
    process.stderr.write(`${JSON.stringify({ error: failureReport(code, detail) })}\n`);
    process.exitCode = 1;
  }
}
