// The first checks: kernel and tools, each answer one sentence that says what and how.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { SetupError, findProgram } from './process.mjs';

/** True when `version` is at least `least`, both as arrays of numbers. */
export const isAtLeast = (version, least) => {
  for (const [index, part] of least.entries()) {
    const given = version[index] ?? 0;
    if (given !== part) return given > part;
  }
  return true;
};

/** The first version number in a text. */
export const parseVersion = (text) =>
  (/(\d+)\.(\d+)(?:\.(\d+))?/.exec(text) ?? []).slice(1, 4).map(Number);

/** PAGEMAP_SCAN, which dirty tracking needs, came with 6.7. */
const kernelLeast = [6, 7];

export const checkKernel = (kernelRelease = release(), platform = process.platform) => {
  if (platform !== 'linux' || process.arch !== 'x64') {
    throw new SetupError(
      `NovaCron runs on Linux on x86-64, and this is ${platform} on ${process.arch}.`);
  }
  if (isAtLeast(parseVersion(kernelRelease), kernelLeast)) return kernelRelease;
  throw new SetupError(
    `Linux ${kernelRelease} is too old: the memory engine needs 6.7 or newer (PAGEMAP_SCAN); `
    + 'use Debian 13, Ubuntu 24.04, or on Debian 12 '
    + '`apt install -t bookworm-backports linux-image-amd64` and reboot.');
};

const tools = [
  { name: 'cargo', args: ['--version'], least: [1, 95, 0], how: 'install or update Rust with rustup (https://rustup.rs): `rustup update stable`' },
  { name: 'go', args: ['version'], least: [1, 26, 0], how: 'unpack a newer Go from https://go.dev/dl into /usr/local and add /usr/local/go/bin to PATH' },
];

const versionOf = (tool) => {
  try {
    return execFileSync(tool.name, tool.args, {
      encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'],
    });
  } catch {
    return null;
  }
};

/** Tools that no Debian package brings in the needed version. */
export const checkTools = ({ needsGo }) => {
  const problems = [];
  if (!isAtLeast(parseVersion(process.version), [20, 0, 0])) {
    problems.push(`Node ${process.version} is too old: install Node 20 or newer`);
  }
  if (!findProgram('npm')) {
    problems.push('npm is missing: install it with Node (`apt install npm`)');
  }
  for (const tool of tools) {
    if (tool.name === 'go' && !needsGo) continue;
    const text = versionOf(tool);
    if (text === null) problems.push(`${tool.name} is missing: ${tool.how}`);
    else if (!isAtLeast(parseVersion(text), tool.least)) {
      const [found, least] = [parseVersion(text).join('.'), tool.least.join('.')];
      problems.push(`${tool.name} ${found} is too old (${least} is needed): ${tool.how}`);
    }
  }
  if (problems.length > 0) throw new SetupError(problems.join('\n'));
};

/** Distribution and its release, as /etc/os-release names them. */
export const distribution = () => {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  const field = (name) => new RegExp(`^${name}="?([^"\n]*)`, 'm').exec(text)?.[1] ?? '';
  return { id: field('ID'), version: field('VERSION_ID') };
};
