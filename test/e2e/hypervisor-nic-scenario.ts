/**
 * Runs inside a network namespace of its own (see hypervisor-nic.test.ts): two hosts, two bridges
 * joined by a veth, one VM with a network card that moves while the NIC gates decide where its
 * frames pass. Prints one JSON line.
 */
import { execFileSync } from 'node:child_process';
import { vmName } from '../../contracts/identity.ts';
import { NicGate } from '../../runners/gates/nic-gate.ts';
import { tapPrefix } from '../../runners/hypervisor/tap.ts';
import {
  awaitTick,
  HypervisorBench,
  moveVm,
  qemu7,
  startGuest,
  ticks,
} from './hypervisor-bench.ts';

const ip = (...args: readonly string[]): string => execFileSync('ip', args, { encoding: 'utf8' });
function pings(): boolean {
  try {
    execFileSync('busybox', ['ping', '-c', '1', '-W', '1', '198.18.1.10'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

const seen: Record<string, unknown> = {};
const bench = new HypervisorBench();
try {
  ip('link', 'set', 'lo', 'up');
  for (const bridge of ['brA', 'brB'])
    ip('link', 'add', bridge, 'type', 'bridge', 'forward_delay', '0');
  ip('link', 'add', 'linkA', 'type', 'veth', 'peer', 'name', 'linkB');
  for (const [port, bridge] of [
    ['linkA', 'brA'],
    ['linkB', 'brB'],
  ] as const) {
    ip('link', 'set', port, 'master', bridge, 'up');
    ip('link', 'set', bridge, 'up');
  }
  ip('addr', 'add', '198.18.1.1/24', 'dev', 'brA');
  const gate = await NicGate.open({ tapPrefix });
  const qemu = await qemu7();
  const source = await bench.host('nic-a', { qemu, bridges: { lab: 'brA' } });
  const target = await bench.host('nic-b', { qemu, bridges: { lab: 'brB' } });
  const vm = vmName('net');
  const macAddress = '52:54:00:ab:cd:01';
  const spec = bench.spec('net', {
    nics: [{ name: 'eth0', macAddress, address: '198.18.1.10/24', segment: 'lab' }],
  });
  if (spec.boot.kind !== 'kernel') throw new Error('unreachable');
  await startGuest(source, {
    ...spec,
    boot: { ...spec.boot, commandLine: `${spec.boot.commandLine} ip4=198.18.1.10/24` },
  });
  await awaitTick(source, 'net', 3);
  seen['shut'] = pings();
  await gate.admit({ macAddress, tapName: source.tapName(vm, 'eth0') });
  seen['open'] = pings();
  seen['obstacles'] = (await source.inspect(vm)).exactnessObstacles;
  seen['nics'] = (await source.inspect(vm)).nics;
  await moveVm({ name: 'net', source, target, mirror: 'kept' });
  const at = ticks(source, 'net').at(-1) ?? 0;
  await awaitTick(target, 'net', at + 3);
  seen['movedShut'] = pings();
  await gate.shut({ macAddress, tapName: source.tapName(vm, 'eth0') });
  await gate.admit({ macAddress, tapName: target.tapName(vm, 'eth0') });
  await (await target.monitor(vm)).announceSelf();
  seen['movedOpen'] = pings() || pings();
  await source.deleteVm(vm);
  seen['sourceTap'] = ip('-o', 'link').includes(source.tapName(vm, 'eth0'));
  seen['stillOpen'] = pings();
  gate.close();
} finally {
  await bench.dispose();
}
seen['tapsLeft'] = ip('-o', 'link').includes(tapPrefix);
console.log(JSON.stringify(seen));
