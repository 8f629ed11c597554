// Builds the lab's guest from Debian packages: kernel, Redis, e2fsprogs, busybox, our witness.
//
//   node lab/guest/build.mjs            (called by the bootstrap; repeats only what changed)
//
// Output in .cache/guest: vmlinuz, initrd, data.raw, data.qcow2 (empty ext4 data disks) and
// guest.json (version, paths, sizes, digests). It boots with
//
//   qemu-system-x86_64 -accel tcg,thread=multi -machine pc -cpu qemu64 -smp 1 -m 256M -nodefaults \
//     -display none -serial stdio -kernel .cache/guest/vmlinuz -initrd .cache/guest/initrd \
//     -append "console=ttyS0 quiet panic=-1 mitigations=off novacron.ip=198.18.1.10/24" \
//     -drive if=none,id=d0,file=disk.raw,format=raw,cache=writeback -device virtio-blk-pci,drive=d0 \
//     -netdev tap,id=n0,ifname=TAP,script=no,downscript=no -device virtio-net-pci,netdev=n0 \
//     -device virtio-rng-pci
//
// and answers on TCP: Redis 6379 (appendonly, appendfsync always), witness 7070 (one JSON object a
// line: {"op":"status"|"start"|"stop"|"set"|"verify"|"fill",…}; native/witness/src/protocol.rs).
// QMP system_powerdown shuts it down cleanly. Settings on the kernel command line (K, M, G):
//   novacron.ip=A.B.C.D/N     address of eth0 (198.18.1.10/24)
//   novacron.disk_device=/dev/vda   data disk; made ext4 when empty; without one /data is memory
//   novacron.pattern=16M      resident self-checking pages; working=0 (all) of them are rewritten
//   novacron.rate=0           bytes rewritten a second, or max
//   novacron.order=random|sequential  pages=full|partial  spread=dense|sparse
//   novacron.data=0           resident data, written once and swept; compressible=0|1
//   novacron.disk=0           bytes of the self-checked file on the data disk; diskrate=0 (bytes/s)
//   novacron.readers=0        threads that read all of the disk's device past the guest's cache
//
// Decides what is in the guest; leaves how it is started to the runner.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, realpathSync, renameSync,
  rmSync, statSync, writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../..');
const output = join(root, '.cache/guest');
const suite = 'bookworm';
const packages = ['linux-image-cloud-amd64', 'redis-server', 'busybox-static', 'e2fsprogs'];
/** In load order; what a module needs comes before it. */
const modules = [
  'drivers/virtio/virtio_ring', 'drivers/virtio/virtio', 'drivers/virtio/virtio_pci_legacy_dev',
  'drivers/virtio/virtio_pci_modern_dev', 'drivers/virtio/virtio_pci', 'drivers/block/virtio_blk',
  'net/core/failover', 'drivers/net/net_failover', 'drivers/net/virtio_net',
  'drivers/char/hw_random/virtio-rng', 'drivers/virtio/virtio_balloon', 'drivers/input/evdev',
  'drivers/acpi/button',
];
/** Size of the data-disk template: sparse, and small beside what a VM asks for. */
const templateBytes = 1 << 30;

const run = (command, args, options = {}) => {
  const done = spawnSync(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  if (done.error) throw new Error(`${command}: ${done.error.message}`);
  if (done.status !== 0) {
    const tail = `${done.stderr}`.trim().split('\n').slice(-4).join('\n');
    throw new Error(`${command} ${args[0] ?? ''} ended with ${done.status ?? done.signal}: ${tail}`);
  }
  return `${done.stdout}`;
};

const digest = (path) => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Debian packages unpacked, not installed: nothing of them runs here but the loader and mke2fs. */
const unpack = () => {
  const stamp = createHash('sha256').update(JSON.stringify([suite, packages])).digest('hex');
  const parent = join(root, '.cache/guest-packages');
  const tree = join(parent, stamp.slice(0, 16));
  if (existsSync(tree)) return tree;
  rmSync(parent, { recursive: true, force: true });
  mkdirSync(parent, { recursive: true });
  const partial = `${tree}.partial`;
  const asked = ['--variant=extract', `--include=${packages.join(',')}`];
  if (process.getuid() === 0) {
    run('mmdebstrap', [...asked, suite, partial]);
  } else {
    // By way of a tar file: a directory made in a user namespace could not be removed again.
    run('mmdebstrap', [...asked, '--format=tar', suite, `${tree}.tar`]);
    mkdirSync(partial);
    run('tar', ['-xf', `${tree}.tar`, '-C', partial, '--no-same-owner', '--exclude=./dev']);
    rmSync(`${tree}.tar`);
  }
  rmSync(join(partial, 'usr/share'), { recursive: true, force: true });
  rmSync(join(partial, 'var/lib/apt'), { recursive: true, force: true });
  renameSync(partial, tree);
  return tree;
};

const libraryDirs = (tree) =>
  ['lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu', 'lib', 'usr/lib'].map((d) => join(tree, d));

/** Runs or lists a program of the unpacked packages with their own loader and libraries. */
const withLoader = (tree, args, options) => {
  const loader = join(tree, 'lib64/ld-linux-x86-64.so.2');
  return run(loader, ['--library-path', libraryDirs(tree).join(':'), ...args], options);
};

/** Full paths of the libraries that a program of the tree needs, indirect ones too. */
const librariesOf = (tree, program) =>
  withLoader(tree, ['--list', program])
    .split('\n')
    .map((line) => /=> (\/\S+)/.exec(line)?.[1])
    .filter((path) => path?.startsWith(tree));

const install = (source, target, mode) => {
  mkdirSync(dirname(target), { recursive: true });
  cpSync(realpathSync(source), target);
  chmodSync(target, mode);
};

const stage = (tree, witness) => {
  const staging = join(root, '.cache/guest-staging');
  rmSync(staging, { recursive: true, force: true });
  for (const folder of ['bin', 'lib64', 'lib/guest', 'proc', 'sys', 'dev', 'run', 'tmp']) {
    mkdirSync(join(staging, folder), { recursive: true });
  }
  install(join(here, 'init'), join(staging, 'init'), 0o755);
  install(witness, join(staging, 'bin/novacron-witness'), 0o755);
  install(join(tree, 'bin/busybox'), join(staging, 'bin/busybox'), 0o755);
  install(join(tree, 'lib64/ld-linux-x86-64.so.2'), join(staging, 'lib64/ld-linux-x86-64.so.2'), 0o755);
  const programs = ['usr/bin/redis-server', 'sbin/mke2fs', 'sbin/resize2fs'].map((p) => join(tree, p));
  for (const program of programs) {
    install(program, join(staging, 'bin', basename(program)), 0o755);
    for (const library of librariesOf(tree, program)) {
      install(library, join(staging, 'lib/guest', basename(library)), 0o755);
    }
  }
  install(join(tree, 'etc/mke2fs.conf'), join(staging, 'etc/mke2fs.conf'), 0o644);
  const release = readdirSync(join(tree, 'lib/modules'))[0];
  for (const module of modules) {
    const source = join(tree, 'lib/modules', release, 'kernel', `${module}.ko`);
    install(source, join(staging, 'lib/modules', `${basename(module)}.ko`), 0o644);
  }
  const order = modules.map((module) => `${basename(module)}.ko\n`).join('');
  writeFileSync(join(staging, 'lib/modules/order'), order);
  return { staging, release };
};

/** Uncompressed: QEMU hands it over by DMA, and unpacking under TCG would cost seconds. */
const packInitrd = (staging, target) => {
  run('sh', ['-c', 'find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet >"$0"', target], {
    cwd: staging,
  });
};

const makeDisks = (tree, work) => {
  const raw = join(work, 'data.raw');
  run('truncate', ['-s', `${templateBytes}`, raw]);
  const environment = { ...process.env, MKE2FS_CONFIG: join(tree, 'etc/mke2fs.conf') };
  withLoader(tree, [join(tree, 'sbin/mke2fs'), '-q', '-F', '-t', 'ext4', '-E', 'nodiscard', raw], {
    env: environment,
  });
  run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, join(work, 'data.qcow2')]);
};

/** Statically linked, so that the guest's C library need not be the one of this machine. */
const buildWitness = () => {
  run('cargo', [
    'rustc', '--quiet', '--release', '-p', 'novacron-witness', '--bin', 'novacron-witness',
    '--', '-C', 'target-feature=+crt-static', '-C', 'strip=symbols',
  ], { cwd: join(root, 'native') });
  return join(root, 'native/target/release/novacron-witness');
};

/** Redis as it names itself; the kernel's release is in its file name. */
const redisVersion = (tree) =>
  /v=(\S+)/.exec(withLoader(tree, [join(tree, 'usr/bin/redis-server'), '--version']))?.[1] ?? 'unknown';

const build = () => {
  const witness = buildWitness();
  const tree = unpack();
  const { staging, release } = stage(tree, witness);
  const work = `${output}.partial`;
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  install(join(tree, `boot/vmlinuz-${release}`), join(work, 'vmlinuz'), 0o644);
  packInitrd(staging, join(work, 'initrd'));
  makeDisks(tree, work);
  rmSync(staging, { recursive: true, force: true });
  const files = {};
  for (const name of ['vmlinuz', 'initrd', 'data.raw', 'data.qcow2']) {
    const path = join(work, name);
    files[name] = { path: join(output, name), bytes: statSync(path).size, sha256: digest(path) };
  }
  const kernelCommandLine = 'console=ttyS0 quiet panic=-1 mitigations=off';
  const description = {
    version: 1, suite, kernelRelease: release, redisVersion: redisVersion(tree), kernelCommandLine,
    redisPort: 6379, witnessPort: 7070, memoryBytesMin: 128 << 20, files,
  };
  writeFileSync(join(work, 'guest.json'), `${JSON.stringify(description, null, 2)}\n`);
  rmSync(output, { recursive: true, force: true });
  renameSync(work, output);
  process.stdout.write(`${JSON.stringify({ output, kernelRelease: release })}\n`);
};

try {
  build();
} catch (error) {
  process.stderr.write(`guest image: ${error.message}\n`);
  process.exitCode = 1;
}
