/**
 * The units of infra/host, read by systemd itself: nothing that it does not know, and programs that
 * exist. They are not started here; that takes a machine whose init is systemd.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { projectRoot } from '../../lab/guest-image.ts';
import { tellSkipped } from '../support/lab-needs.ts';

const folder = join(projectRoot, 'infra/host');
const units = readdirSync(folder).filter((name) => name.endsWith('.service'));
/** Where the units expect the project, and its node there. */
const installed = '/opt/novacron/';
const lacking = spawnSync('systemd-analyze', ['--version']).status === 0 ? [] : ['systemd-analyze'];

/** What systemd says about a unit; '' when it likes it. Its programs are stood in for. */
function complaints(directory: string, name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text.replaceAll(/^(ExecStart=)\S+/gm, '$1/bin/true'));
  const { status, stdout, stderr } = spawnSync(
    'systemd-analyze', ['verify', '--man=no', path], { encoding: 'utf8', timeout: 60_000 });
  return `${stdout}${stderr}${status === 0 ? '' : `exit ${status}`}`;
}

test('each unit starts a program of this project', () => {
  expect(units.length).toBeGreaterThan(2);
  for (const name of units) {
    const [program = '', main = '', ...rest] =
      /^ExecStart=(.*)$/m.exec(readFileSync(join(folder, name), 'utf8'))?.[1]?.split(' ') ?? [];
    const native = program.replace(`${installed}native/target/release/novacron-`, '');
    const source = native === program ? main.replace(installed, '') : `native/${native}/Cargo.toml`;
    if (native === program) expect(program).toBe(`${installed}node_modules/.bin/node`);
    expect([name, existsSync(join(projectRoot, source))]).toEqual([name, true]);
    expect(rest).toContain('--config');
  }
});

describe.skipIf(lacking.length > 0)('systemd-analyze verify', () => {
  const directory = mkdtempSync(join(tmpdir(), 'novacron-units-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  test.each(units)('%s', (name) => {
    expect(complaints(directory, name, readFileSync(join(folder, name), 'utf8'))).toBe('');
  });

  test('a word that systemd does not know is found', () => {
    const text = readFileSync(join(folder, units[0] ?? ''), 'utf8');
    expect(complaints(directory, 'broken.service', text.replace('[Service]', '[Service]\nRestrat=no')))
      .toContain('Restrat');
  });
});

test.runIf(lacking.length > 0)('systemd-analyze verify is not tried here', () => {
  tellSkipped('systemd-analyze verify', lacking);
});
