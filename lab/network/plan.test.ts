import { describe, expect, it } from 'vitest';
import { planNetwork } from './plan.ts';
import { parseInterfaceBytes } from './network.ts';

describe('planNetwork', () => {
  it('gives every host an address on the management and the migration network', () => {
    const plan = planNetwork({ id: 'nc12ab', hostCount: 3 });
    expect(plan.hosts.map((host) => host.managementAddress))
      .toEqual(['198.18.0.11', '198.18.0.12', '198.18.0.13']);
    expect(plan.hosts.map((host) => host.migrationAddress))
      .toEqual(['198.18.2.11', '198.18.2.12', '198.18.2.13']);
  });

  it('keeps interface names within the kernel limit of 15 and prefixes every namespace', () => {
    const plan = planNetwork({ id: 'nc12ab', hostCount: 50 });
    const lines = [...plan.cables, ...[...plan.inside.values()].flat()];
    for (const line of lines) {
      for (const [, name = ''] of line.matchAll(/(?:link add|name|link set|dev|master) (\S+)/g)) {
        expect(name.length).toBeLessThanOrEqual(15);
      }
    }
    for (const namespace of plan.namespaces) expect(namespace).toMatch(/^nc12ab-/);
    expect(new Set(plan.namespaces).size).toBe(plan.namespaces.length);
  });

  it('makes all cables between namespaces, none in the namespace of the machine', () => {
    for (const line of planNetwork({ id: 'nc0000', hostCount: 2 }).cables) {
      expect(line.match(/ netns /g)).toHaveLength(2);
    }
  });

  it.each([
    ['nc12a', 2], ['xx12ab', 2], ['nc12ab; rm', 2], ['nc12ab', 0], ['nc12ab', 51],
    ['nc12ab', 1.5],
  ])('refuses id %s with %s hosts', (id, hostCount) => {
    expect(() => planNetwork({ id, hostCount })).toThrow(RangeError);
  });
});

describe('parseInterfaceBytes', () => {
  const table = [
    'Inter-|   Receive                                                |  Transmit',
    ' face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets',
    '    lo:       1       2    0    0    0     0          0         0        3       4',
    '  mig0: 1234567     100    0    0    0     0          0         0  7654321     200',
  ].join('\n');
  it('reads received and sent bytes', () => {
    expect(parseInterfaceBytes(table, 'mig0'))
      .toEqual({ receivedBytes: 1234567, sentBytes: 7654321 });
  });
  it('answers null for an interface that is not there', () => {
    expect(parseInterfaceBytes(table, 'mig1')).toBeNull();
  });
});
