/**
 * Whether KVM runs a guest here: found by running one, because /dev/kvm may open and then hang.
 *
 * The guest is one boot sector that writes a byte to QEMU's debug exit port; it needs firmware,
 * real mode and port I/O to work, and ends QEMU by itself. The answer is cached with an expiry.
 */
import { spawn } from 'node:child_process';
import {
  accessSync, closeSync, constants, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync,
  statSync, writeFileSync,
} from 'node:fs';
import { release, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What VMs are run with on this host, and why. */
export interface AcceleratorReport {
  readonly accelerator: 'kvm' | 'tcg';
  readonly reason: string;
  /** What the probe took; 0 when it had nothing to run. */
  readonly probeMs: number;
}

/** Longest run of the probe guest: under KVM it takes half a second, on a hanging one for ever. */
const probeMsMax = 8_000;
/**
 * A host's KVM changes with its kernel and its settings; the kernel's release is part of the key.
 */
const cacheMsMax = 24 * 3_600_000;
const cacheFile = fileURLToPath(new URL('../../.cache/accelerator.json', import.meta.url));
/** isa-debug-exit ends QEMU with (value << 1) | 1. */
const exitValue = 0x2a;
const expectedExitCode = (exitValue << 1) | 1;

/**
 * VMMs run as users of their own: root's rights are no help to them, but the guard gives them the
 * group of the device (runners/hypervisor/device-group.ts). Pure.
 */
export function isOpenToVmms(
  { mode, gid }: { readonly mode: number; readonly gid: number },
): boolean {
  return (mode & 0o006) === 0o006 || (gid !== 0 && (mode & 0o060) === 0o060);
}

/** mov dx,0x501; mov al,value; out dx,al; hlt; jmp $ — then the boot signature. */
function bootSector(): Buffer {
  const sector = Buffer.alloc(512);
  Buffer.from([0xba, 0x01, 0x05, 0xb0, exitValue, 0xee, 0xf4, 0xeb, 0xfe]).copy(sector);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

/** Descriptor of a file with these bytes that no directory lists. */
function openNameless(data: Buffer): number {
  const folder = mkdtempSync(join(tmpdir(), 'novacron-probe-'));
  const path = join(folder, 'boot.img');
  try {
    writeFileSync(path, data);
    return openSync(path, 'r+');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Boots the probe guest; resolves with null when it ran, else with what happened. */
async function bootProbe(
  { accelerator, qemu }: { readonly accelerator: 'kvm' | 'tcg'; readonly qemu: string },
): Promise<string | null> {
  // Nothing of it outlasts us, even if we are killed: the image has no name any more when QEMU gets
  // it, and a QEMU that hangs has its own end.
  const image = openNameless(bootSector());
  const child = spawn('timeout', [
    '--signal=KILL', String(probeMsMax / 1_000 + 1), qemu,
    '-accel', accelerator, '-machine', 'pc', '-m', '16M', '-nodefaults', '-no-user-config',
    '-display', 'none', '-drive', 'file=/dev/fd/3,format=raw,if=ide',
    '-device', 'isa-debug-exit,iobase=0x501,iosize=1',
  ], { stdio: ['ignore', 'ignore', 'pipe', image] });
  closeSync(image);
  let said = '';
  child.stderr?.on('data', (chunk: Buffer) => { said = `${said}${chunk.toString()}`.slice(-400); });
  return new Promise((resolve) => {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      // `timeout` passes it on as the end of QEMU; its own signal is a second later.
      child.kill('SIGTERM');
    }, probeMsMax);
    const end = (problem: string | null): void => {
      clearTimeout(timer);
      resolve(problem);
    };
    child.on('error', (error) => { end(error.message); });
    child.on('close', (code) => {
      if (code === expectedExitCode) end(null);
      else if (isLate) end(`a guest of 9 instructions did not end within ${probeMsMax / 1000} s`);
      else end(said.trim() || `QEMU ended with ${code ?? 'a signal'}`);
    });
  });
}

interface CachedReport {
  readonly key: string;
  readonly atMs: number;
  readonly report: AcceleratorReport;
}

function readCache(key: string, nowMs: number): AcceleratorReport | null {
  try {
    const cached = JSON.parse(readFileSync(cacheFile, 'utf8')) as CachedReport;
    const isFresh = cached.key === key && nowMs - cached.atMs < cacheMsMax && nowMs >= cached.atMs;
    return isFresh ? cached.report : null;
  } catch {
    return null;
  }
}

async function probe(qemu: string): Promise<AcceleratorReport> {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return { accelerator: 'tcg', reason: '/dev/kvm is not there or may not be opened', probeMs: 0 };
  }
  if (!isOpenToVmms(statSync('/dev/kvm'))) {
    const reason = '/dev/kvm belongs to root alone: give it a group that may read and write it, '
      + 'e.g. a udev rule with GROUP="kvm", MODE="0660"';
    return { accelerator: 'tcg', reason, probeMs: 0 };
  }
  const startedMs = performance.now();
  const problem = await bootProbe({ accelerator: 'kvm', qemu });
  const probeMs = Math.round(performance.now() - startedMs);
  return problem === null
    ? { accelerator: 'kvm', reason: `a guest booted under KVM in ${probeMs} ms`, probeMs }
    : { accelerator: 'tcg', reason: `KVM does not run guests here: ${problem}`, probeMs };
}

/**
 * The accelerator for this host, at most 10 s when not cached. Never throws: without an answer it
 * is tcg, which runs everywhere. `fresh` asks again.
 */
export async function probeAccelerator(
  { qemu = 'qemu-system-x86_64', fresh = false }: {
    readonly qemu?: string; readonly fresh?: boolean;
  } = {},
): Promise<AcceleratorReport> {
  const key = `${release()} ${qemu}`;
  const cached = fresh ? null : readCache(key, Date.now());
  if (cached !== null) return cached;
  const report = await probe(qemu);
  try {
    mkdirSync(dirname(cacheFile), { recursive: true });
    const cached: CachedReport = { key, atMs: Date.now(), report };
    writeFileSync(cacheFile, JSON.stringify(cached));
  } catch { /* a read-only checkout asks each time */ }
  return report;
}

/** Boots the same guest under TCG: proves that QEMU and its firmware work at all. */
export const proveEmulation = (qemu = 'qemu-system-x86_64'): Promise<string | null> =>
  bootProbe({ accelerator: 'tcg', qemu });
