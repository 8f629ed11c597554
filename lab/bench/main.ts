/**
 * `npm run bench -- …`: measures the product beside QEMU's own migration, in the lab, on guests
 * whose memory is verified, and the engine's parts alone. Reads the command line; what a series is
 * and what it prints is each command's own matter.
 */
import { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { addDiskCommand } from './disk-command.ts';
import { addEngineCommand } from './engine-command.ts';
import { addMigrateCommand } from './migrate-command.ts';

const program = new Command('bench')
  .description('Measures moves in a lab of network namespaces on this machine (needs root).');
addMigrateCommand(program);
addDiskCommand(program);
addEngineCommand(program);

try {
  await program.parseAsync();
} catch (error) {
  const report = error instanceof CodedError
    ? { code: error.code, message: error.message } : { code: 'internal', message: String(error) };
  process.stderr.write(`bench: ${report.message}\n`);
  process.stdout.write(`${JSON.stringify({ msg: 'failed', ...report })}\n`);
  process.exitCode = 1;
}
