/**
 * The rules of style as a ratchet, over the files that git tracks. A rule that has older offenders
 * lists how many there may be; the number may only fall. Each ban names its replacement.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const limits = {
  lineColumns: 100, typeScriptFileLines: 400, rustFileLines: 600, functionLines: 70,
} as const;

/** Lines above 100 columns that are left from before this rule held; only ever lower it. */
const wideLinesLeft = 115;

const isTest = (path: string): boolean =>
  path.startsWith('test/') || path.includes('.test.') || path.includes('/tests/');
const isSource = (path: string): boolean => /\.(ts|mts|mjs|rs|sh)$/.test(path);
const isGenerated = (path: string): boolean =>
  path.startsWith('native/generated/') || path === 'package-lock.json' || path === 'native/Cargo.lock';

interface TrackedFile {
  readonly path: string;
  readonly lines: readonly string[];
}

const tracked: readonly TrackedFile[] = execFileSync('git', ['ls-files', '-z'], {
  cwd: root, encoding: 'utf8', maxBuffer: 1 << 24,
})
  .split('\0')
  .filter((path) => path !== '' && existsSync(join(root, path)))
  .filter((path) => !isGenerated(path) && !path.startsWith('test/replay/histories/'))
  .map((path) => ({ path, lines: readFileSync(join(root, path), 'utf8').split('\n') }));
const sources = tracked.filter(({ path }) => isSource(path));

/** `path:line what` of every offence; a line may be long for a URL or a literal that can't break. */
const offences = (
  files: readonly TrackedFile[], judge: (line: string, file: TrackedFile) => string | null,
): string[] => files.flatMap((file) => file.lines.flatMap((line, index) => {
  const what = judge(line, file);
  return what === null ? [] : [`${file.path}:${index + 1} ${what}`];
}));

/** Fails with the list of offences when there are more than the ratchet allows. */
const expectAtMost = (found: readonly string[], allowed: number): void => {
  expect(found.length > allowed ? found : [], `at most ${allowed}, found ${found.length}`).toEqual([]);
};

interface FunctionSpan {
  readonly name: string;
  readonly line: number;
  readonly length: number;
}

/** Functions by their first and last line: both stand at the same indentation in this style. */
function functionSpans({ path, lines }: TrackedFile): FunctionSpan[] {
  const opening = path.endsWith('.rs')
    ? /^(\s*)(?:pub(?:\([a-z]+\))? )?(?:const )?(?:async )?(?:unsafe )?fn (\w+)/
    : /^(\s*)(?:export )?(?:async )?(?:function\*? (\w+)|const (\w+) = (?:async )?\([^=]*(?:=>|$))/;
  return lines.flatMap((line, index) => {
    const match = opening.exec(line);
    if (match === null || line.endsWith(';')) return [];
    const indentation = match[1] ?? '';
    // The next lines at this indentation close the parameters or the function; another kind of
    // line means an expression without a body.
    for (let at = index + 1; at < lines.length; at += 1) {
      const text = lines[at] ?? '';
      if (text.trim() === '' || !text.startsWith(indentation)) continue;
      const rest = text.slice(indentation.length);
      if (rest.startsWith(' ')) continue;
      if (!/^[}\])]/.test(rest)) return [];
      if (/[{([,]$|=>$|^\) =>/.test(rest)) continue;
      return [{ name: match[2] ?? match[3] ?? '', line: index + 1, length: at - index + 1 }];
    }
    return [];
  });
}

const bannedNames = new Map([
  ['utils', 'the concept'], ['util', 'the concept'], ['helpers', 'the concept'],
  ['helper', 'the concept'], ['common', 'the concept'], ['misc', 'the concept'],
  ['types', 'the contract that it holds'], ['manager', 'what it does'],
]);

describe('names of files', () => {
  it('are kebab-case in TypeScript and snake_case in Rust', () => {
    const wrong = sources.map(({ path }) => path).filter((path) => {
      const name = basename(path);
      return path.endsWith('.rs') ? !/^[a-z0-9_]+\.rs$/.test(name)
        : !/^[a-z0-9]+(-[a-z0-9]+)*(\.(test|config))?\.(ts|mts|mjs|sh)$/.test(name);
    });
    expect(wrong).toEqual([]);
  });

  it('name a concept', () => {
    const wrong = sources.flatMap(({ path }) => path.split('/').flatMap((part) => {
      const word = part.replace(/\..*$/, '');
      const better = bannedNames.get(word);
      return better === undefined ? [] : [`${path}: instead of ${word} name ${better}`];
    }));
    expect(wrong).toEqual([]);
  });
});

describe('sizes', () => {
  it('keep lines within 100 columns', () => {
    // Tests are exempt, like from the other sizes.
    expectAtMost(offences(sources.filter(({ path }) => !isTest(path)), (line) =>
      line.length > limits.lineColumns && !/https?:\/\//.test(line) ? `${line.length} columns` : null), wideLinesLeft);
  });

  it('keep files short enough to read in one go: split by concept', () => {
    const long = sources.filter(({ path }) => !isTest(path)).flatMap(({ path, lines }) => {
      // Tests inside a Rust file are exempt like every other test.
      const testsAt = lines.findIndex((line) => line.startsWith('#[cfg(test)]'));
      const length = (testsAt === -1 ? lines.length : testsAt) - 1;
      const max = path.endsWith('.rs') ? limits.rustFileLines : limits.typeScriptFileLines;
      return length > max ? [`${path}: ${length} lines, at most ${max}`] : [];
    });
    expectAtMost(long, 0);
  });

  it('keep functions within 70 lines: name the parts', () => {
    const long = sources.filter(({ path }) => !isTest(path) && !path.endsWith('.sh'))
      .flatMap((file) => functionSpans(file)
        .filter(({ length }) => length > limits.functionLines)
        .map(({ name, line, length }) => `${file.path}:${line} ${name} has ${length} lines`));
    expectAtMost(long, 0);
  });
});

/** Assembled, so that this file does not offend against its own rules. */
const word = (...parts: string[]): RegExp => new RegExp(`\\b${parts.join('')}\\b`);

describe('words', () => {
  it('leave nothing for later: write it down as an issue or do it', () => {
    const later = [word('TO', 'DO'), word('FIX', 'ME'), word('XX', 'X'), word('HA', 'CK')];
    expect(offences(sources, (line) =>
      later.find((pattern) => pattern.test(line))?.source ?? null)).toEqual([]);
  });

  it('skip no test without a reason on the line: skipIf(reason !== null), or say why', () => {
    const bare = new RegExp(`\\b(it|test|describe)\\.(on${'ly'}|to${'do'}|sk${'ip'})\\(`);
    expect(offences(sources.filter(({ path }) => isTest(path)), (line) =>
      bare.test(line) ? 'a bare skip' : null)).toEqual([]);
  });

  it('export by name: a default export has another name in every file', () => {
    expect(offences(sources.filter(({ path }) => path.endsWith('.ts') && !path.endsWith('.config.ts')),
      (line) => (/^export default\b/.test(line) ? 'default export' : null))).toEqual([]);
  });

  it('name no place of one machine or registry: take it from configuration', () => {
    const places = [`/wo${'rk'}/`, `\\.lib${'rary'}\\b`, `registry\\.npm${'js'}`, `prox${'y'}\\.golang`];
    const pattern = new RegExp(places.join('|'));
    expect(offences(tracked.filter(({ path }) => !path.startsWith('test/tidy')), (line) =>
      pattern.exec(line)?.[0] ?? null)).toEqual([]);
  });

  it('hold no secrets: they live in files with mode 0600 outside the repository', () => {
    const secret = new RegExp([
      `-----BEGIN [A-Z ]*PRIVATE ${'KEY'}-----\\s*$`, 'AKIA[0-9A-Z]{16}', 'ghp_[A-Za-z0-9]{36}',
      'xox[bp]-[0-9A-Za-z-]{20}',
    ].join('|'));
    expect(offences(tracked, (line) => (secret.test(line) ? 'looks like a secret' : null))).toEqual([]);
  });

  it('use the vocabulary: source and target', () => {
    const pattern = new RegExp(`\\b(dst|dest|destination)${'Host'}\\b|\\bsrc${'Host'}\\b`);
    expect(offences(sources, (line) => pattern.exec(line)?.[0] ?? null)).toEqual([]);
  });
});

describe('the rules themselves', () => {
  it('see a function that is too long', () => {
    const lines = ['export function long() {', ...Array.from({ length: 80 }, () => '  step();'), '}'];
    expect(functionSpans({ path: 'a.ts', lines })).toEqual([{ name: 'long', line: 1, length: 82 }]);
  });

  it('see every tracked file of the project', () => {
    expect(sources.length).toBeGreaterThan(50);
  });
});
