/** Gathers what a host tells about itself when it joins: software, hardware, where it listens. */
import { spawn } from 'node:child_process';
import { rm, statfs } from 'node:fs/promises';
import { release, totalmem } from 'node:os';
import { join } from 'node:path';
import { CodedError } from '../../contracts/failures.ts';
import type { HostFacts } from '../../contracts/runner.ts';
import type { HostConfig } from '../config.ts';
import { readOfferedCpuFlags } from '../hypervisor/inspection.ts';
import { listMachineTypes, type QemuBinary } from '../hypervisor/qemu-binary.ts';
import { QmpClient } from '../hypervisor/qmp/client.ts';
import { kernelObstacle } from './observe-target.ts';

/** A QEMU without a machine listens within a second, on a loaded host within ten. */
const probeTimeoutMs = 10_000;
const retryEveryMs = 50;

/** CPU flags that this QEMU can give a guest here, asked of a VMM without a machine. */
async function offeredCpuFlags(
  qemu: QemuBinary, config: HostConfig,
): Promise<readonly string[]> {
  const socketPath = join(config.runtimeDir, 'probe.sock');
  await rm(socketPath, { force: true });
  const [program = '', ...before] = qemu.command;
  const machine = config.accelerator === 'kvm' ? 'none,accel=kvm' : 'none,accel=tcg';
  const child = spawn(program, [
    ...before, '-nodefaults', '-no-user-config', '-display', 'none', '-machine', machine,
    '-qmp', `unix:${socketPath},server=on,wait=off`,
  ], { stdio: 'ignore', env: { ...process.env, ...qemu.environment } });
  const failed = new Promise<never>((_resolve, reject) => {
    child.once('error', (error) => reject(new CodedError('vm/start-failed', error.message, error)));
    child.once('exit', (code) => reject(new CodedError('vm/start-failed', `QEMU exit ${code}`)));
  });
  failed.catch(() => undefined);
  try {
    const client = await Promise.race([connectPatiently(socketPath), failed]);
    return await readOfferedCpuFlags(client);
  } finally {
    child.kill('SIGKILL');
    await rm(socketPath, { force: true });
  }
}

async function connectPatiently(socketPath: string): Promise<QmpClient> {
  const until = Date.now() + probeTimeoutMs;
  for (;;) {
    try {
      return await QmpClient.connect({ socketPath });
    } catch (error) {
      if (Date.now() > until) throw error;
      await new Promise((resolve) => { setTimeout(resolve, retryEveryMs); });
    }
  }
}

/** The facts, measured now; ports are those that are really bound. */
export async function gatherFacts(options: {
  readonly config: HostConfig;
  readonly qemu: QemuBinary;
  readonly peerPort: number;
  readonly lanePort: number;
}): Promise<HostFacts> {
  const { config, qemu } = options;
  const [machineTypes, cpuFlags, disk, obstacle] = await Promise.all([
    listMachineTypes(qemu), offeredCpuFlags(qemu, config), statfs(config.stateDir),
    kernelObstacle(),
  ]);
  return {
    version: 1,
    name: config.name,
    migrationAddress: config.lanes.address,
    peerPort: options.peerPort,
    lanePort: options.lanePort,
    segments: [...config.segments],
    accelerator: config.accelerator,
    qemuVersion: qemu.version,
    machineTypes: [...machineTypes],
    kernelRelease: release(),
    memoryBytes: totalmem(),
    diskFreeBytes: disk.bavail * disk.bsize,
    cpuFlags: [...cpuFlags],
    features: obstacle === null ? ['direct-engine'] : [],
  };
}
