/** The generated pages are what the sources say. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { operatorConfig } from '../../cli/operator-config.ts';
import { describeProgram } from '../../cli/program.ts';
import { cliPreface, failuresPage, programPage } from '../../cli/reference.ts';
import { exitCodeMeanings, exitCodeOfFailure, exitCodes } from '../../cli/exit-codes.ts';
import { failures, isFailureCode } from '../../contracts/failures.ts';
import { vmSpec } from '../../contracts/runner.ts';
import { controlConfig, hostConfig, ledgerConfig, loadConfig } from '../../runners/config.ts';

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
    for (const command of ['host list', 'host show', 'host join', 'host cordon', 'host uncordon',
      'host evacuate', 'host drain', 'evacuation show', 'evacuation watch', 'evacuation pause',
      'evacuation resume', 'evacuation cancel', 'evacuation set', 'rebalance', 'vm list',
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
  const jsonOf = (name: string): string[] =>
    [...guide(name).matchAll(/```json\n([^`]*)```/g)].map(([, text]) => text ?? '');
  it('show a VM spec that is accepted', () => {
    const [sample = ''] = jsonOf('vm-spec.md');
    expect(vmSpec.safeParse(JSON.parse(sample))).toMatchObject({ success: true });
  });
  it('show configurations that the processes accept', () => {
    const [ledger = '', control = '', operator = '', host = '', ...more] = jsonOf('real-hosts.md');
    expect(more).toEqual([]);
    const dir = mkdtempSync(join(tmpdir(), 'novacron-guide-'));
    const path = join(dir, 'process.json');
    const samples = [[ledger, ledgerConfig], [control, controlConfig], [host, hostConfig]] as const;
    for (const [text, schema] of samples) {
      writeFileSync(path, text);
      expect(loadConfig({ path, schema })).toMatchObject({ profile: 'production' });
    }
    expect(operatorConfig.safeParse(JSON.parse(operator))).toMatchObject({ success: true });
    rmSync(dir, { recursive: true });
  });
  it('show commands that exist', () => {
    const page = programPage({ program: describeProgram(), source: '', preface: [] });
    for (const name of ['real-hosts.md', 'evacuate.md']) {
      for (const [, command = ''] of guide(name).matchAll(/^novacron ([a-z]+ [a-z-]+)/gm)) {
        expect(page).toContain(`### novacron ${command}\n`);
      }
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
