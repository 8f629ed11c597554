/** What preflight has against a guest of the engine lab, asked of its VMM as the runner asks. */
import { hostName, incarnation, vmName } from '../../contracts/identity.ts';
import { describeRunning, readFacts } from '../../runners/hypervisor/inspection.ts';
import { QmpClient } from '../../runners/hypervisor/qmp/client.ts';
import type { Vmm } from '../e2e/engine-lab.ts';

export async function obstaclesOf(
  vmm: Pick<Vmm, 'inspectionPath' | 'pid'>,
): Promise<readonly string[]> {
  const qmp = await QmpClient.connect({ socketPath: vmm.inspectionPath });
  const facts = await readFacts(qmp);
  qmp.close();
  return describeRunning(facts, {
    host: hostName('h1'), incarnation: incarnation('0'.repeat(32)), vmmPid: vmm.pid,
    qemuVersion: '7.2',
    spec: {
      version: 1, name: vmName('lab'), vcpuCount: 1, memoryBytes: 0, machineType: '', cpuModel: '',
      disks: [], nics: [], boot: { kind: 'disk', firmware: 'bios', cloudInitUserData: null }, failover: 'none',
    },
  }).exactnessObstacles;
}
