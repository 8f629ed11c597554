/** A plain copy over the migration link: what any way of moving a disk is compared with. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { runCommand } from '../command.ts';
import type { Lab } from '../lab.ts';
import { commandIn, labVariable } from '../processes.ts';

const copyPort = 4_900;
const copyMsMax = 600_000;

/** Receives into a file and makes it durable; says how long it took from the first byte. */
const receiver = `
const [address, port, path] = process.argv.slice(1);
const fs = require('node:fs');
const server = require('node:net').createServer((socket) => {
  let begun = 0; const file = fs.createWriteStream(path);
  socket.once('data', () => { begun = performance.now(); });
  socket.pipe(file).on('finish', () => {
    const fd = fs.openSync(path, 'r+'); fs.fsyncSync(fd);
    console.log(performance.now() - begun); process.exit();
  });
}).listen(Number(port), address, () => console.log('listening'));`;
const sender = `
const [address, port, path] = process.argv.slice(1);
require('node:fs').createReadStream(path, { highWaterMark: 1 << 20 })
  .pipe(require('node:net').connect(Number(port), address));`;

/** Time in ms to copy a file from host 1 to host 2 over TCP, durable at the end. */
export async function plainCopyMs(lab: Lab, path: string): Promise<number> {
  const target = lab.host(2);
  const [command = '', ...args] = commandIn(target.namespace, [
    process.execPath, '-e', receiver, target.migrationAddress, String(copyPort),
    join(lab.directories.data, 'plain-copy.raw')]);
  const listening = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, [labVariable]: lab.id },
  });
  const lines = createInterface({ input: listening.stdout })[Symbol.asyncIterator]();
  try {
    await lines.next();
    await runCommand(commandIn(lab.host(1).namespace, [
      process.execPath, '-e', sender, target.migrationAddress, String(copyPort), path,
    ]), { timeoutMs: copyMsMax });
    return Number((await lines.next()).value);
  } finally {
    listening.kill('SIGKILL');
  }
}
