/** The generated pages are what the sources say. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { describeProgram } from '../../cli/program.ts';
import { cliPreface, failuresPage, programPage } from '../../cli/reference.ts';
import { exitCodeMeanings, exitCodeOfFailure, exitCodes } from '../../cli/exit-codes.ts';
import { failures, isFailureCode } from '../../contracts/failures.ts';
import { vmSpec } from '../../contracts/runner.ts';
import { hostConfig, loadConfig } from '../../runners/config.ts';

const generate = fileURLToPath(new URL('../../infra/docs/generate.mjs', import.meta.url));

describe('generated pages', () => {
  it('are up to date; else run node infra/docs/generate.mjs', () => {
    execFileSync(process.execPath, [generate, '--check'], { encoding: 'utf8' });
  });
  it('name every failure with who acts and the exit code', () => {
    const page = failuresPage();
    for (const code of Object.keys(failures)) expect(page).toContain(`| \`${code}\` |`);
  });
  it('name every command of the issue', () => {
    const page = programPage({ program: describeProgram(), source: '', preface: cliPreface });
    for (const command of ['host list', 'host show', 'host join', 'host cordon', 'vm list',
      'vm create',
      'vm show', 'vm console', 'vm start', 'vm stop', 'vm delete', 'migrate', 'migration list',
      'migration show', 'migration watch', 'migration pause', 'migration resume',
        'migration cancel',
      'migration set', 'why', 'demo', 'doctor', 'bench', 'cert rotate', 'cert revoke',
        'completion']) {
      expect(page).toMatch(new RegExp(`^#+ novacron ${command}$`, 'm'));
    }
  });
});

describe('guides', () => {
  const guide = (name: string): string =>
    readFileSync(new URL(`../../docs/guides/${name}`, import.meta.url), 'utf8');
  const jsonOf = (name: string): string => /```json\n([^`]*)```/.exec(guide(name))?.[1] ?? '';
  it('show a host configuration and a VM spec that are accepted', () => {
    const dir = mkdtempSync(join(tmpdir(), 'novacron-guide-'));
    const path = join(dir, 'host.json');
    writeFileSync(path, jsonOf('real-hosts.md'));
    expect(loadConfig({ path, schema: hostConfig })).toMatchObject({ profile: 'production' });
    expect(vmSpec.safeParse(JSON.parse(jsonOf('vm-spec.md')))).toMatchObject({ success: true });
    rmSync(dir, { recursive: true });
  });
  it('show commands that exist', () => {
    const page = programPage({ program: describeProgram(), source: '', preface: [] });
    for (const [, command = ''] of guide('real-hosts.md').matchAll(/^novacron ([a-z]+ [a-z-]+)/gm)) {
      expect(page).toContain(`### novacron ${command}\n`);
    }
  });
});

describe('exit codes', () => {
  it('give every failure a documented code that is not success', () => {
    for (const code of Object.keys(failures).filter(isFailureCode)) {
      const exit = exitCodeOfFailure(code);
      expect(exitCodeMeanings[exit]).toBeDefined();
      expect(exit).not.toBe(exitCodes.ok);
    }
  });
  it.each([['preflight/cpu', 3], ['migration/open', 3], ['vm/unknown', 3], ['ownership/refused', 3],
    ['input/invalid', 2], ['ownership/unreachable', 6], ['temporal/unreachable', 6], ['link/lost',
      6],
    ['link/refused', 7], ['certificate/revoked', 7], ['migration/cancelled', 5], ['disk/full', 4],
    ['migration/digest', 4], ['internal', 1]] as const)('%s is %d', (code, exit) => {
    expect(exitCodeOfFailure(code)).toBe(exit);
  });
});
