/** The lab's network on a real kernel: two labs side by side, limits, and nothing left behind. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { runCommand } from '../../lab/command.ts';
import { Lab, lowerLab, sweepDeadLabs } from '../../lab/lab.ts';
import { limitRate, namespaceExists, raiseNetwork } from '../../lab/network/network.ts';
import { labDirectories } from '../../lab/lab.ts';
import { commandIn } from '../../lab/processes.ts';
import { listLabs, startTicksOf } from '../../lab/state.ts';
import { describeWith, missingRoot } from '../support/lab-needs.ts';

const labs: string[] = [];
const raise = async (hostCount = 2): Promise<Lab> => {
  const lab = await Lab.raise({ hostCount });
  labs.push(lab.id);
  return lab;
};
afterEach(async () => {
  for (const id of labs.splice(0)) await lowerLab(id);
});
const ping = async (namespace: string, address: string): Promise<string> =>
  await runCommand(commandIn(namespace, ['busybox', 'ping', '-c', '1', '-W', '1', address]));

// Namespaces belong to root; elsewhere the bootstrap prints the line that runs the tests as root.
describeWith('the lab network', missingRoot(), () => {
  it('joins hosts and client, and two labs live side by side', async () => {
    const [first, second] = [await raise(2), await raise(2)];
    for (const { plan } of [first, second]) {
      await ping(plan.hosts[0]!.namespace, '198.18.0.1');
      await ping(plan.hosts[0]!.namespace, '198.18.2.12');
      await ping(plan.controlNamespace, '198.18.0.12');
    }
    const outside = await runCommand(['ip', '-o', 'addr']);
    expect(outside).not.toContain('198.18.');
  });

  it('is the same network when it is made twice', async () => {
    const lab = await raise(2);
    await raiseNetwork(lab.plan);
    await ping(lab.host(1).namespace, lab.host(2).migrationAddress);
  });

  it('holds a rate limit on the migration network and lifts it', async () => {
    const lab = await raise(2);
    await limitRate(lab.host(1), 2_000_000);
    const address = lab.host(2).migrationAddress;
    const receiver = `require('node:net').createServer((socket) => {
      const start = performance.now();
      socket.resume().on('end', () => { console.log(performance.now() - start); process.exit(); });
    }).listen(9000, '${address}', () => console.log('listening'));`;
    const sender = `require('node:net').connect(9000, '${address}').end(Buffer.alloc(4e6));`;
    const seconds = async (): Promise<number> => {
      const listener = spawn('nsenter',
        commandIn(lab.host(2).namespace, [process.execPath, '-e', receiver]).slice(1),
        { stdio: ['ignore', 'pipe', 'inherit'] });
      const said = listener.stdout.setEncoding('utf8')[Symbol.asyncIterator]();
      await said.next();
      await runCommand(commandIn(lab.host(1).namespace, [process.execPath, '-e', sender]));
      return Number((await said.next()).value) / 1000;
    };
    expect(await seconds()).toBeGreaterThan(1.6);
    await limitRate(lab.host(1), null);
    expect(await seconds()).toBeLessThan(1);
  });

  it('leaves nothing behind, even of processes that it did not start itself', async () => {
    const lab = await raise(2);
    await lab.start({
      name: 'sleeper', namespace: lab.host(1).namespace, command: ['sleep', '1000'], ready: 'none',
    });
    const stray = spawn('nsenter', commandIn(lab.host(2).namespace, ['sleep', '1000']).slice(1),
      { detached: true, stdio: 'ignore' });
    await sleep(200);
    expect(startTicksOf(stray.pid!)).not.toBeNull();
    await lab.lower();
    expect(startTicksOf(stray.pid!)).toBeNull();
    expect(lab.isRunning('sleeper')).toBe(false);
    for (const name of lab.plan.namespaces) expect(namespaceExists(name)).toBe(false);
    for (const path of Object.values(labDirectories(lab.id))) expect(existsSync(path)).toBe(false);
  });

  it('sweeps a lab whose maker was killed, and not a kept one', async () => {
    const script = (kept: boolean): string => `
      import { Lab } from ${JSON.stringify(new URL('../../lab/lab.ts', import.meta.url).href)};
      const lab = await Lab.raise({ hostCount: 1, kept: ${kept} });
      await lab.start({ name: 's', namespace: lab.host(1).namespace,
        command: ['sleep', '1000'], ready: 'none' });
      console.log(lab.id); setInterval(() => 0, 1000);`;
    const make = async (kept: boolean): Promise<string> => {
      const child = spawn(process.execPath, ['--input-type=module', '-e', script(kept)],
        { stdio: ['ignore', 'pipe', 'inherit'] });
      const id = await new Promise<string>((resolve) => {
        child.stdout.once('data', (data: Buffer) => resolve(data.toString().trim()));
      });
      labs.push(id);
      child.kill('SIGKILL');
      await new Promise((resolve) => child.once('exit', resolve));
      return id;
    };
    const dead = await make(false);
    const kept = await make(true);
    // Making the second lab may already have swept the first one.
    await sweepDeadLabs();
    expect(listLabs()).not.toContain(dead);
    expect(namespaceExists(`${dead}-h1`)).toBe(false);
    expect(listLabs()).toContain(kept);
    expect(namespaceExists(`${kept}-h1`)).toBe(true);
  });
});
