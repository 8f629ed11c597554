// Debian and Ubuntu packages: asks dpkg what is missing, installs as root, else prints the line.
import { spawnSync } from 'node:child_process';
import { SetupError, runProgram } from './process.mjs';
import { distribution } from './requirements.mjs';

/** What running VMs and building the project need. */
const base = [
  'build-essential', 'cmake', 'pkg-config', 'git', 'ca-certificates', 'python3',
  'qemu-system-x86', 'qemu-utils', 'seabios', 'ovmf', 'nftables', 'iproute2', 'cpio', 'e2fsprogs',
  'mmdebstrap', 'debian-archive-keyring', 'openssl', 'busybox',
];
/** Only for tests: Temporal's time-skipping server, the production profile, Redis' tools. */
const forTests = ['maven', 'default-jre-headless', 'redis-server', 'postgresql'];
/** TLC is a Java program, and Maven fetches it. */
const forModels = ['maven', 'default-jre-headless'];
const forPurpose = {
  test: forTests, ready: forTests, cluster: ['postgresql'], models: forModels,
};
const supported = { debian: ['12', '13'], ubuntu: ['24.04'] };

/** Packages of a purpose. */
export const systemPackages = (purpose) => [...base, ...forPurpose[purpose] ?? []];

const missingOf = (packages) => {
  const asked = spawnSync('dpkg-query', ['-W', '-f', '${Package} ${db:Status-Status}\n', ...packages], {
    encoding: 'utf8',
  });
  const installed = new Set((asked.stdout ?? '').split('\n')
    .filter((line) => line.endsWith(' installed')).map((line) => line.split(' ')[0]));
  return packages.filter((name) => !installed.has(name));
};

/** Installs what is missing; returns 'cached' when nothing is. */
export const installSystemPackages = async ({ purpose, log, onLine }) => {
  const { id, version } = distribution();
  const missing = missingOf(systemPackages(purpose));
  if (missing.length === 0) return 'cached';
  if (!supported[id]) {
    throw new SetupError(
      `this system (${id || 'unknown'} ${version}) has no apt packages of Debian or Ubuntu: `
      + `install these yourself and run this again: ${missing.join(' ')}`);
  }
  const line = `apt-get install -y --no-install-recommends ${missing.join(' ')}`;
  if (process.getuid() !== 0) {
    throw new SetupError(`system packages are missing; run: sudo sh -c 'apt-get update && ${line}'`);
  }
  const env = {
    ...process.env, DEBIAN_FRONTEND: 'noninteractive',
    // A test machine's own Redis and PostgreSQL are not wanted: only the programs are.
    RUNLEVEL: '1',
  };
  const options = { env, log, onLine };
  const wait = ['-o', 'DPkg::Lock::Timeout=600'];
  await runProgram('apt-get', [...wait, 'update'], options);
  await runProgram('apt-get', [
    ...wait, 'install', '-y', '--no-install-recommends', ...missing,
  ], options);
  return supported[id].includes(version) ? 'done' : `done (${id} ${version} was never tried)`;
};
