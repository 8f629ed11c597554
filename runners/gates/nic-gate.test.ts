/** Real nftables, bridge and frames in namespaces of our own; needs root. */
import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NicGate } from './nic-gate.ts';

const tag = `ncg${process.pid % 100000}`;
const host = `${tag}h`;
const guest = `${tag}g`;
const peer = `${tag}p`;
const mac = '52:54:00:00:00:01';
const tapName = 'nvtest0';
const nic = { macAddress: mac, tapName };
const nftCommand = ['ip', 'netns', 'exec', host, 'nft'];

const ip = (...args: readonly string[]): string =>
  execFileSync('ip', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

function missing(): string | null {
  if (process.getuid?.() !== 0) return 'root';
  try {
    execFileSync('nft', ['--version']);
    ip('netns', 'add', `${tag}t`);
    ip('netns', 'del', `${tag}t`);
    return null;
  } catch (error) {
    return `nft and network namespaces (${String(error).slice(0, 80)})`;
  }
}
const lacking = missing();
if (lacking !== null) console.warn(`nic-gate tests are skipped: ${lacking} missing`);

/** Whether one ping from a namespace is answered. */
function pings(from: string, address: string): boolean {
  try {
    ip('netns', 'exec', from, 'busybox', 'ping', '-c', '1', '-W', '1', address);
    return true;
  } catch {
    return false;
  }
}

describe.skipIf(lacking !== null)('NIC gate', () => {
  beforeAll(() => {
    for (const space of [host, guest, peer]) ip('netns', 'add', space);
    const inHost = (...args: readonly string[]): string => ip('-n', host, ...args);
    inHost('link', 'add', 'br0', 'type', 'bridge', 'forward_delay', '0');
    inHost('link', 'set', 'br0', 'up');
    // A veth stands for a tap: the bridge and nftables treat both as ports.
    inHost('link', 'add', tapName, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest);
    inHost('link', 'add', 'plain0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', peer);
    for (const port of [tapName, 'plain0']) inHost('link', 'set', port, 'master', 'br0', 'up');
    ip('-n', guest, 'link', 'set', 'eth0', 'address', mac);
    for (const [space, address] of [
      [guest, '198.18.1.10/24'],
      [peer, '198.18.1.20/24'],
    ] as const) {
      ip('-n', space, 'addr', 'add', address, 'dev', 'eth0');
      ip('-n', space, 'link', 'set', 'eth0', 'up');
    }
  });
  afterAll(() => {
    for (const space of [host, guest, peer]) ip('netns', 'del', space);
  });

  test('frames pass only while the card is open, in both directions', async () => {
    expect(pings(guest, '198.18.1.20')).toBe(true);
    const gate = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    expect(pings(guest, '198.18.1.20')).toBe(false);
    expect(pings(peer, '198.18.1.10')).toBe(false);
    await gate.admit(nic);
    expect(pings(guest, '198.18.1.20')).toBe(true);
    expect(pings(peer, '198.18.1.10')).toBe(true);
    expect(await gate.list()).toEqual([{ ...nic, remainingMs: null }]);
    await gate.shut(nic);
    await gate.shut(nic);
    expect(pings(peer, '198.18.1.10')).toBe(false);
    expect(await gate.isOpen(nic)).toBe(false);
    gate.close();
  }, 30_000);

  test('another address behind the same tap does not pass', async () => {
    const gate = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    await gate.admit({ ...nic, macAddress: '52:54:00:00:00:99' });
    expect(pings(guest, '198.18.1.20')).toBe(false);
    await gate.shut({ ...nic, macAddress: '52:54:00:00:00:99' });
    gate.close();
  }, 30_000);

  test('a lease ends by itself, and a renewal lengthens it without a gap', async () => {
    const gate = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    await gate.admit(nic, { leaseMs: 600 });
    await gate.admit(nic, { leaseMs: 60_000 });
    const [open] = await gate.list();
    expect(open?.remainingMs).toBeGreaterThan(30_000);
    await gate.admit(nic, { leaseMs: 600 });
    // No process of ours is left that could shut it.
    gate.close();
    expect(pings(guest, '198.18.1.20')).toBe(true);
    await new Promise((resolve) => {
      setTimeout(resolve, 700);
    });
    expect(pings(guest, '198.18.1.20')).toBe(false);
  }, 30_000);

  test('a restarted runner takes the elements over', async () => {
    const before = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    await before.admit(nic);
    before.close();
    const after = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    expect(await after.isOpen(nic)).toBe(true);
    expect(pings(guest, '198.18.1.20')).toBe(true);
    await after.shut(nic);
    after.close();
  }, 30_000);

  test('a refused change is an error, the next one works, and opening is quick', async () => {
    const gate = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    await expect(gate.admit({ macAddress: 'x"; flush ruleset', tapName })).rejects.toThrow(
      /not a card/,
    );
    ip('netns', 'exec', host, 'nft', 'delete', 'table', 'bridge', 'novacron');
    await expect(gate.admit(nic)).rejects.toMatchObject({ code: 'engine/failed' });
    gate.close();
    const again = await NicGate.open({ tapPrefix: 'nv', nftCommand });
    const [admitted, started]: [number[], number[]] = [[], []];
    for (let round = 0; round < 15; round += 1) {
      const beganMs = performance.now();
      await again.admit(nic);
      admitted.push(performance.now() - beganMs);
      const startMs = performance.now();
      ip('netns', 'exec', host, 'nft', 'list', 'tables');
      started.push(performance.now() - startMs);
    }
    const median = (figures: number[]): number => figures.toSorted((a, b) => a - b)[7] ?? 0;
    // One nft for all changes: a process for each would be in the way of the first frame.
    console.log(`NIC gate: admit ${median(admitted)} ms, a process ${median(started)} ms`);
    expect(median(admitted)).toBeLessThan(median(started));
    again.close();
  }, 30_000);
});
