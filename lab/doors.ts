/** The doors of a lab: where this machine's loopback is led to, and on which ports. */
import { join } from 'node:path';
import { freePort } from '../runners/free-port.ts';
import type { Passage } from './door.ts';
import { projectRoot } from './guest-image.ts';
import type { Lab } from './lab.ts';

export const loopback = '127.0.0.1';

export interface Endpoint {
  readonly address: string;
  readonly port: number;
}
/** What a door leads to. */
interface Service extends Endpoint {
  /** On this machine's loopback; absent: any that is free. */
  readonly outsidePort?: number;
  readonly papers?: Passage['papers'];
}

/** Opens the doors; answers the ports on this machine's loopback in the order of `services`. */
export async function openDoors(
  lab: Lab, services: readonly Service[],
): Promise<number[]> {
  const ports: number[] = [];
  const inside: Passage[] = [];
  const outside: Passage[] = [];
  for (const [index, { address, port: inPort, outsidePort, papers }] of services.entries()) {
    const path = join(lab.directories.runtime, `door-${index}.sock`);
    const port = outsidePort ?? await freePort();
    ports.push(port);
    inside.push({
      listen: { path }, connect: { address, port: inPort },
      ...(papers === undefined ? {} : { papers }),
    });
    outside.push({ listen: { address: loopback, port }, connect: { path } });
  }
  const door = join(projectRoot, 'lab/door.ts');
  await lab.start({
    name: 'door-inside', namespace: lab.plan.controlNamespace, ready: 'line',
    command: [process.execPath, door, JSON.stringify(inside)],
  });
  await lab.start({
    name: 'door-outside', namespace: null, ready: 'line',
    command: [process.execPath, door, JSON.stringify(outside)],
  });
  return ports;
}
