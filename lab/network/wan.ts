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

/** What a wide-area link is like. */
export interface WanLink {
  /** Null: no limit of its own (the emulator itself is honest to 62 MB/s on two cores). */
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
