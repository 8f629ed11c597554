/**
 * Puts the packet-level emulator between the migration interfaces of host 1 and host 2: the
 * addresses move from the cable to its device, so that everything that was told an address keeps
 * it. Rate alone needs no emulator (limitRate); delay and loss do, the kernel here has no netem.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { CodedError } from '../../contracts/failures.ts';
import { runCommand } from '../command.ts';
import { projectRoot } from '../guest-image.ts';
import type { Lab } from '../lab.ts';
import type { LabProcess } from '../processes.ts';
import { wanCounters } from './wan-trust.ts';
import type { WanCounters } from './wan-trust.ts';

/** What a wide-area link is like. */
export interface WanLink {
  /** Null: no limit of its own; what is honest says wan-trust.ts. */
  readonly rateBytesPerSecond: number | null;
  readonly rttMs: number;
  readonly lossShare: number;
  readonly seed: number;
}

/** Name of the emulator's device in both hosts; its counters are the wire then. */
export const wanDevice = 'wan0';
const program = join(projectRoot, 'native/target/release/novacron-wan');

/** Arguments of the emulator. The queue: one bandwidth-delay product, at least 256 KiB. Pure. */
export function wanArguments(lab: Pick<Lab, 'host'>, link: WanLink): string[] {
  const [a, b] = [lab.host(1), lab.host(2)];
  const product = ((link.rateBytesPerSecond ?? 62_500_000) * link.rttMs) / 1000;
  return [
    `ns_a=${a.namespace}`, `ns_b=${b.namespace}`, `dev=${wanDevice}`,
    `ip_a=${a.migrationAddress}`, `ip_b=${b.migrationAddress}`,
    `rate=${((link.rateBytesPerSecond ?? 0) * 8) / 1e6}`, `delay=${link.rttMs / 2}`,
    `loss=${link.lossShare}`, `queue=${Math.max(262_144, Math.round(product))}`,
    `seed=${link.seed}`, 'rt=10', 'slack=250',
  ];
}

/** How long the emulator may take to print its counters: its main loop does nothing but packets. */
const countersMsMax = 2_000;

/** The emulator's counters since its start, asked for now. Failure: internal when it is gone. */
export async function readWanCounters(emulator: LabProcess): Promise<WanCounters> {
  const lines = (): string[] => emulator.log().split('\n').filter((line) => line.endsWith('}'));
  const before = lines().length;
  emulator.signal('SIGUSR1');
  for (const end = performance.now() + countersMsMax; performance.now() < end;) {
    const line = lines()[before];
    if (line !== undefined) return wanCounters.parse(JSON.parse(line));
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new CodedError('internal', `the link emulator is silent: ${emulator.log(400)}`);
}

/** Starts the emulator; it ends with the lab. Failure: input/invalid when it was never built. */
export async function startWan(lab: Lab, link: WanLink): Promise<LabProcess> {
  if (!existsSync(program)) {
    throw new CodedError('input/invalid', `${program} is missing: run \`npm run setup\``);
  }
  for (const host of [lab.host(1), lab.host(2)]) {
    await runCommand(['ip', '-n', host.namespace, 'addr', 'flush', 'dev', host.migrationInterface]);
  }
  const emulator = await lab.start({
    name: 'wan', namespace: null, ready: 'none', command: [program, ...wanArguments(lab, link)],
  });
  for (const end = performance.now() + 5_000; !emulator.log().includes('ready');) {
    if (!emulator.isRunning() || performance.now() > end) {
      throw new CodedError('internal', `the link emulator did not start: ${emulator.log(400)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return emulator;
}
