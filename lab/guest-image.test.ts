import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { barredForOthers, requireReadableForVms } from './guest-image.ts';

describe('what the users of VMs can read', () => {
  let folder: string;
  let program: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'novacron-readable-'));
    mkdirSync(join(folder, 'a/b'), { recursive: true });
    program = join(folder, 'a/b/qemu');
    writeFileSync(program, '');
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const modes = (inner: number, file: number): void => {
    chmodSync(folder, 0o755);
    chmodSync(join(folder, 'a'), inner);
    chmodSync(join(folder, 'a/b'), 0o755);
    chmodSync(program, file);
  };

  it('is what every folder on the way and the file itself allow', () => {
    modes(0o755, 0o644);
    expect(barredForOthers(program)).toBeNull();
    expect(() => requireReadableForVms({ command: [program, '-L', folder], environment: {} }))
      .not.toThrow();
  });
  it('names the folder that bars the way, and the command that opens it', () => {
    modes(0o700, 0o644);
    expect(() => requireReadableForVms({ command: ['nice', program], environment: {} }))
      .toThrow(`chmod o+rx ${join(folder, 'a')}\``);
  });
  it('names the file when only that is barred', () => {
    modes(0o755, 0o600);
    expect(barredForOthers(program)).toBe(program);
  });
});
