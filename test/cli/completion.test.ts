/**
 * Completion as shells do it: each script is loaded by its shell and asked what may follow. A shell
 * that the machine lacks is skipped with its name.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { completionScript, shells, type Shell } from '../../cli/completion.ts';
import { describeProgram } from '../../cli/program.ts';
import { describeWith } from '../support/lab-needs.ts';

/** A shell that starts on a busy machine. */
const testMsMax = 30_000;

const isThere = (shell: Shell): boolean => (process.env['PATH'] ?? '').split(':')
  .some((directory) => existsSync(join(directory, shell)));

let dir = '';
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-completion-'));
  // What the scripts ask for names; it also shows that they ask for the right kind.
  await writeFile(join(dir, 'novacron'), `#!/bin/sh
[ "$1" = names ] || exit 9
case "$2" in vms) echo db web ;; hosts) echo h1 h2 ;; migrations) echo migrate/db/r1 ;; esac
`);
  await chmod(join(dir, 'novacron'), 0o755);
  for (const shell of shells) {
    await writeFile(join(dir, `completion.${shell}`),
      completionScript({ program: describeProgram(), shell }));
  }
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const run = (program: string, args: readonly string[]): Promise<string> =>
  new Promise((resolve, reject) => {
    execFile(program, [...args], {
      env: { PATH: `${dir}:${process.env['PATH'] ?? ''}`, HOME: dir, TERM: 'dumb' },
    }, (error, stdout, stderr) => (error === null ? resolve(stdout)
      : reject(new Error(`${error.message}: ${stderr}`))));
  });

/** How a shell is asked for the candidates of the last word. */
const asked: Readonly<Record<Shell, (words: readonly string[]) => Promise<string>>> = {
  bash: (words) => run('bash', ['--norc', '-c', `source '${dir}/completion.bash'
    COMP_WORDS=(novacron ${words.map((word) => `'${word}'`).join(' ')})
    COMP_CWORD=${words.length}; _novacron; printf '%s\\n' "\${COMPREPLY[@]}"`]),
  // Pressing Tab needs a terminal: zsh makes one of its own for the shell that is asked.
  zsh: (words) => run('zsh', ['-f', '-c', zshScript(words)]),
  fish: (words) => run('fish', ['--no-config', '-c', `source '${dir}/completion.fish'
    complete -C '${['novacron', ...words].join(' ')}'`]),
};

function zshScript(words: readonly string[]): string {
  return `zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner "PS1= ; autoload -U compinit && compinit -u -d '${dir}/zcompdump'"
zpty -w inner "source '${dir}/completion.zsh'"
zpty -w inner 'compadd() {
  local -a given; local index
  given=("$@")
  if [[ \${given[(I)-O]} -gt 0 || \${given[(I)-A]} -gt 0 || \${given[(I)-D]} -gt 0 ]]; then
    builtin compadd "$@"; return
  fi
  local -a hits; builtin compadd -A hits "$@"
  for index in $hits; do print -r -- "HIT:$index:"; done
  builtin compadd "$@"
}'
zpty -w inner 'finish() { print -r -- "E""ND:" }; zle -C asked complete-word _main_complete'
zpty -w inner 'bindkey "^I" asked; zle -N finish; bindkey "^X" finish; print -r -- "REA""DY:"'
zpty -r -m inner line '*READY:*'
zpty -w -n inner $'novacron ${words.join(' ')}\\t\\x18'
zpty -r -m inner line '*END:*'
print -r -- "$line"
zpty -d inner`;
}

/** The candidates, without what a shell says about them. */
async function candidates(shell: Shell, ...words: string[]): Promise<string[]> {
  const said = await asked[shell](words);
  const found = shell === 'zsh' ? [...said.matchAll(/HIT:([^:]*):/g)].map(([, word]) => word ?? '')
    : said.split('\n').map((line) => line.split('\t')[0] ?? '');
  return [...new Set(found.filter((word) => word !== ''))].toSorted();
}

for (const shell of shells) {
  describeWith(`completion in ${shell}`, isThere(shell) ? [] : [`the shell ${shell}`], () => {
    it('offers commands', async () => {
      expect(await candidates(shell, 'migr')).toEqual(['migrate', 'migration']);
    }, testMsMax);
    it('offers the commands of a command', async () => {
      expect(await candidates(shell, 'migration', 'p')).toEqual(['pause', 'post-copy']);
    }, testMsMax);
    it('offers the flags of that command and of no other', async () => {
      expect(await candidates(shell, 'migrate', 'db', '--down')).toEqual(['--downtime-budget']);
      expect(await candidates(shell, 'migration', 'set', 'db', '--down'))
        .toEqual(['--downtime-budget']);
      expect(await candidates(shell, 'vm', 'show', 'db', '--down')).toEqual([]);
    }, testMsMax);
    it('asks for names of VMs, hosts and migrations', async () => {
      expect(await candidates(shell, 'vm', 'show', 'w')).toEqual(['web']);
      expect(await candidates(shell, 'migrate', 'd')).toEqual(['db']);
      expect(await candidates(shell, 'migrate', 'db', '--to', 'h')).toEqual(['h1', 'h2']);
      expect(await candidates(shell, 'migration', 'show', 'migrate/')).toEqual(['migrate/db/r1']);
    }, testMsMax);
  });
}
