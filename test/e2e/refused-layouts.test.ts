/**
 * Layouts that nobody moves exactly yet, as a real VMM tells them: preflight has a reason against
 * each, and none against the same VMM without it. The guests never run.
 */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { obstaclesOf } from '../support/obstacles.ts';
import { missingParts } from './engine-lab.ts';

const lacking = missingParts();
if (lacking !== null) console.warn(`refused layouts are skipped: ${lacking} missing`);
const isRoot = process.getuid?.() === 0;
if (!isRoot) console.warn('huge pages of hugetlbfs are skipped: only root may mount it');

describe.skipIf(lacking !== null)('a VMM with', () => {
  const dir = mkdtempSync(join(tmpdir(), 'novacron-layouts-'));
  const memory = (id: string, more = 'share=on'): readonly string[] =>
    ['-object', `memory-backend-file,id=${id},mem-path=${join(dir, id)},size=64M,${more}`];
  const machine = ['-machine', 'pc-i440fx-7.2,memory-backend=ram0'];
  const plain = [...machine, '-m', '64M', ...memory('ram0')];
  const disk = (more: object): readonly string[] => ['-blockdev', JSON.stringify({
    driver: 'file', 'node-name': 'disk', filename: join(dir, 'disk'), ...more })];
  const huge = join(dir, 'huge');
  afterAll(() => rmSync(dir, { recursive: true }));

  let count = 0;
  const obstacles = async (layout: readonly string[]): Promise<readonly string[]> => {
    execFileSync('truncate', ['-s', '1M', join(dir, 'disk')]);
    count += 1;
    const inspectionPath = join(dir, `qmp${count}`);
    const errors: Buffer[] = [];
    const vmm = spawn('qemu-system-x86_64', [
      '-accel', 'tcg', '-nodefaults', '-display', 'none', '-S', ...layout,
      '-qmp', `unix:${inspectionPath},server=on,wait=off`,
    ], { stdio: ['ignore', 'ignore', 'pipe'] });
    vmm.stderr.on('data', (text: Buffer) => errors.push(text));
    const ended = new Promise((resolve) => { vmm.on('close', resolve); });
    try {
      for (let tries = 0; !existsSync(inspectionPath); tries += 1) {
        if (tries > 500 || vmm.exitCode !== null) throw new Error(Buffer.concat(errors).toString());
        await sleep(20);
      }
      return await obstaclesOf({ inspectionPath, pid: vmm.pid ?? 0 });
    } finally {
      vmm.kill('SIGKILL');
      await ended;
    }
  };

  test('one memory file and a buffered disk has nothing against it', async () => {
    const disks = [...disk({}), '-device', 'virtio-blk-pci,drive=disk'];
    expect(await obstacles([...plain, ...disks])).toEqual([]);
  });

  test.each<[string, () => readonly string[], string]>([
    ['a balloon', () => [...plain, '-device', 'virtio-balloon-pci,id=balloon0'],
      'device balloon0 (virtio-balloon-pci) is unknown to the target'],
    ['a RAM backend for each NUMA node', () => [
      '-machine', 'pc-i440fx-7.2', '-m', '128M', ...memory('ram0'), ...memory('ram1'),
      '-numa', 'node,memdev=ram0', '-numa', 'node,memdev=ram1',
    ], 'memory ram1 is a second backend'],
    ['plugged memory', () => [
      ...machine, '-m', '64M,slots=2,maxmem=256M', ...memory('ram0'), ...memory('ram1'),
      '-device', 'pc-dimm,id=dimm0,memdev=ram1',
    ], 'device dimm0 (pc-dimm) is memory of its own'],
    ['memory without a name', () => [
      ...machine, '-m', '64M', '-object', 'memory-backend-memfd,id=ram0,size=64M,share=on',
    ], 'memory ram0 is memory-backend-memfd, not a named file'],
    ['memory of its own', () => [...machine, '-m', '64M', ...memory('ram0', 'share=off')],
      'memory ram0 is private to the VMM'],
    ['a disk past the host\'s cache', () => [
      ...plain, ...disk({ cache: { direct: true } }), '-device', 'virtio-blk-pci,drive=disk',
    ], 'block node disk uses O_DIRECT'],
    ['an image on another one', () => {
      const [base, top] = [join(dir, 'base.qcow2'), join(dir, 'top.qcow2')];
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', base, '1M']);
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', base, top]);
      return [
        ...plain, ...disk({ filename: top }), '-blockdev', 'qcow2,node-name=top,file=disk',
        '-device', 'virtio-blk-pci,drive=top',
      ];
    }, 'block node top has a backing file'],
    ['an NVMe controller', () => [
      ...plain, ...disk({}), '-device', 'nvme,id=nvme0,drive=disk,serial=1',
    ], 'device nvme0 (nvme) writes memory unseen'],
    ['memory shared with others', () => [
      ...plain, ...memory('others'), '-device', 'ivshmem-plain,id=shared0,memdev=others',
    ], 'device shared0 (ivshmem-plain) writes memory unseen'],
  ])('%s is refused', async (_name, layout, reason) => {
    expect(await obstacles(layout())).toContain(reason);
  });

  test.runIf(isRoot)('huge pages of hugetlbfs is refused', async () => {
    mkdirSync(huge);
    execFileSync('mount', ['-t', 'hugetlbfs', '-o', 'pagesize=2M', 'lab', huge]);
    try {
      // Unreserved: no huge page of the machine is taken as long as nothing runs.
      const backend = `memory-backend-file,id=ram0,mem-path=${huge}/ram0,size=64M,share=on,reserve=off`;
      expect(await obstacles([...machine, '-m', '64M', '-object', backend]))
        .toContain('memory ram0 is of huge pages (hugetlbfs), never moved so far');
    } finally {
      execFileSync('umount', ['-l', huge]);
    }
  });
});
