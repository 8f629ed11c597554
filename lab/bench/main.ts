/**
 * `npm run bench -- …`: measures the product beside QEMU's own migration, in the lab, on guests
 * whose memory is verified, and the engine's parts alone. Reads the command line; what a series is
 * and what it prints is each command's own matter.
 */
import { Command } from 'commander';
import { runCommandLine } from '../command-line.ts';
import { addDiskCommand } from './disk-command.ts';
import { addEngineCommand } from './engine-command.ts';
import { addMigrateCommand } from './migrate-command.ts';

const program = new Command('bench')
  .description('Measures moves in a lab of network namespaces on this machine (needs root).');
addMigrateCommand(program);
addDiskCommand(program);
addEngineCommand(program);

await runCommandLine(program, { msg: 'failed' });
