/**
 * Completion scripts for bash, zsh and fish, generated from the command tree: pure. Names of VMs
 * and hosts are asked at the moment of completion through the hidden command `names`, which stays
 * silent when nobody answers.
 */
import type { Argument, Command, Option } from 'commander';

export type Shell = 'bash' | 'zsh' | 'fish';
export const shells: readonly Shell[] = ['bash', 'zsh', 'fish'];

/** A flag; `takes` says what the next word is, `names` asks for names of a kind. */
export interface CompletionFlag {
  readonly name: string;
  readonly about: string;
  readonly takes: 'nothing' | 'a value' | 'hosts' | 'vms';
}

/** What can follow a path of commands ('' is `novacron` itself). */
export interface CompletionNode {
  readonly path: string;
  readonly subcommands: readonly { readonly name: string; readonly about: string }[];
  readonly flags: readonly CompletionFlag[];
  /** Kind of name that the first argument is, for `names`. */
  readonly names: 'vms' | 'hosts' | 'migrations' | null;
}

const kindOf = (argument: Argument | undefined): CompletionNode['names'] => {
  switch (argument?.name()) {
    case 'vm': case 'vm-or-migration': return 'vms';
    case 'host': return 'hosts';
    case 'migration': return 'migrations';
    default: return null;
  }
};
const isShown = (command: Command): boolean =>
  command.name() !== 'help' && !(command as Command & { _hidden?: boolean })._hidden;
const flagName = (option: Option): string => option.long ?? option.short ?? '';
const plain = (text: string): string => text.split('\n')[0]?.replace(/[`'"\\$:[\]]/g, '') ?? '';

const flagOf = (option: Option): CompletionFlag => {
  const name = flagName(option);
  const ofNames = name === '--to' || name === '--host' ? 'hosts' : name === '--vm' ? 'vms' : null;
  return {
    name, about: plain(option.description),
    takes: ofNames ?? (option.required || option.optional ? 'a value' : 'nothing'),
  };
};

/** Flattens the tree; every node stands for one path of words. */
export function completionNodes(program: Command): CompletionNode[] {
  const globals = program.options.map(flagOf);
  const nodes: CompletionNode[] = [];
  const visit = (command: Command, path: string): void => {
    const shown = command.commands.filter(isShown);
    const own = command === program ? [] : command.options.map(flagOf);
    nodes.push({
      path,
      subcommands: shown.map((one) => ({ name: one.name(), about: plain(one.description()) })),
      flags: [...own, ...globals, { name: '--help', about: 'help', takes: 'nothing' }],
      names: kindOf(command.registeredArguments[0]),
    });
    for (const one of shown) visit(one, path === '' ? one.name() : `${path} ${one.name()}`);
  };
  visit(program, '');
  return nodes;
}

const pathsOf = (nodes: readonly CompletionNode[]): string[] =>
  nodes.map(({ path }) => path).filter((path) => path !== '');
const words = (node: CompletionNode): string =>
  [...node.subcommands, ...node.flags].map(({ name }) => name).join(' ');

function bash(nodes: readonly CompletionNode[]): string {
  const cases = nodes.map((node) => `    '${node.path}') words='${words(node)}'; `
    + `names='${node.names ?? ''}' ;;`);
  return `# bash completion for novacron: source <(novacron completion bash)
_novacron() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}"
  local path='' word words='' names=''
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) continue ;; esac
    case " $(_novacron_paths) " in *" \${path:+$path/}$word "*) path="\${path:+$path/}$word" ;; esac
  done
  path="\${path//\\// }"
  case "$previous" in --to|--host) names=hosts; words='' ;; --vm) names=vms; words='' ;; *)
  case "$path" in
${cases.join('\n')}
  esac ;; esac
  if [[ -n "$names" && "$current" != -* ]]; then
    words="$words $(novacron names "$names" 2>/dev/null)"
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
_novacron_paths() {
  echo '${pathsOf(nodes).map((path) => path.replaceAll(' ', '/')).join(' ')}'
}
complete -F _novacron novacron
`;
}

function zsh(nodes: readonly CompletionNode[]): string {
  const cases = nodes.map((node) => {
    const list = [...node.subcommands, ...node.flags]
      .map(({ name, about }) => `'${name}:${about}'`).join(' ');
    return `    '${node.path}') found=(${list}); names='${node.names ?? ''}' ;;`;
  });
  return `#compdef novacron
# zsh completion for novacron: source <(novacron completion zsh)
_novacron() {
  local -a found
  local path_ word names candidate
  for word in \${words[2,CURRENT-1]}; do
    [[ $word == -* ]] && continue
    candidate="\${path_:+$path_ }$word"
    case "$candidate" in
    ${pathsOf(nodes).map((path) => `'${path}'`).join('|')}) path_=$candidate ;;
    esac
  done
  case "$words[CURRENT-1]" in --to|--host) names=hosts ;; --vm) names=vms ;; *)
  case "$path_" in
${cases.join('\n')}
  esac ;; esac
  [[ -n $names ]] && found+=(\${(f)"$(novacron names $names 2>/dev/null | tr ' ' '\\n')"})
  _describe novacron found
}
compdef _novacron novacron
`;
}

const fishNames = (kind: string): string =>
  `'(string split " " (novacron names ${kind} 2>/dev/null))'`;

/** What follows a flag: names of a kind, a value that nobody can offer, nothing. */
function fishValue(takes: CompletionFlag['takes']): string {
  if (takes === 'nothing') return '';
  return takes === 'a value' ? ' -r' : ` -x -a ${fishNames(takes)}`;
}

function fish(nodes: readonly CompletionNode[]): string {
  const lines = nodes.flatMap((node) => {
    const path = node.path.split(' ').filter((word) => word !== '');
    const under = path.length === 0 ? '__fish_use_subcommand'
      : path.map((word) => `__fish_seen_subcommand_from ${word}`).join('; and ');
    const notYet = node.subcommands.length === 0 || path.length === 0 ? ''
      : `; and not __fish_seen_subcommand_from ${
        node.subcommands.map(({ name }) => name).join(' ')}`;
    return [
      ...node.subcommands.map(({ name, about }) =>
        `complete -c novacron -f -n '${under}${notYet}' -a '${name}' -d '${about}'`),
      ...node.flags.filter(() => path.length > 0 && node.subcommands.length === 0)
        .map(({ name, about, takes }) =>
          `complete -c novacron -n '${under}' -l '${name.replace(/^--/, '')}' -d '${about}'`
            + fishValue(takes)),
      ...(node.names === null ? []
        : [`complete -c novacron -f -n '${under}' -a ${fishNames(node.names)}`]),
    ];
  });
  return `# fish completion for novacron: novacron completion fish | source\n${lines.join('\n')}\n`;
}

/** Script of a shell for a command tree. */
export function completionScript(
  { program, shell }: { readonly program: Command; readonly shell: Shell },
): string {
  const nodes = completionNodes(program);
  return { bash, zsh, fish }[shell](nodes);
}
