/** The durable log on a real directory and on a simulated disk. */
import { execFileSync } from 'node:child_process';
import { appendFile, mkdtemp, open, readFile, readdir, rm, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { LedgerEvent } from '../../contracts/ownership.ts';
import { backupLedger, restoreLedger, rolledBackEpochStep } from '../../runners/group/ledger-log/backup.ts';
import { lockDirectory } from '../../runners/group/ledger-log/directory-lock.ts';
import { directoryStorage } from '../../runners/group/ledger-log/log-storage.ts';
import { memoryStorage } from '../../runners/group/ledger-log/memory-storage.ts';
import { verifyLedger } from '../../runners/group/ledger-log/verify.ts';
import { LedgerCore } from '../../runners/ledger/core.ts';
import { openLocalLedger } from '../../runners/ledger/local-ledger.ts';
import {
  asHost, control, hostA, hostB, must, runningVm, silent, vm, vmm,
} from '../support/ledger-fixtures.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const desire = (desired: 'running' | 'stopped', epoch = 1): LedgerEvent =>
  ({ kind: 'desire', vm, epoch, desired });

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'novacron-log-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));
const state = () => join(dir, 'state');
const segmentOf = async (): Promise<string> => join(state(),
  (await readdir(state())).sort().findLast((name) => name.startsWith('segment')) as string);

describe('the ledger log', () => {
  test('cuts a torn tail with a loud line and goes on', async () => {
    const first = await openLocalLedger({ dir: state() });
    await runningVm(first);
    await first.close();
    await appendFile(await segmentOf(), Buffer.from([0, 0, 1, 0, 9, 9, 9, 9, 0x7b]));
    const lines: string[] = [];
    const logger = pino({ level: 'warn' }, { write: (line: string) => void lines.push(line) });
    const second = await openLocalLedger({ dir: state(), logger });
    expect(lines.join()).toContain('torn');
    await must(second.as(control).propose([desire('stopped')]));
    await second.close();
    const third = await openLocalLedger({ dir: state() });
    expect((await third.as(control).readVm(vm))?.desired).toBe('stopped');
    await third.close();
  });

  test('damage in the middle: refuses to start and says what to do', async () => {
    const first = await openLocalLedger({ dir: state() });
    await runningVm(first);
    await first.close();
    const file = await open(await segmentOf(), 'r+');
    await file.write(Buffer.from('X'), 0, 1, 100);
    await file.close();
    await expect(openLocalLedger({ dir: state() })).rejects.toThrow(/damaged.*restore/);
    // Nothing was cut or deleted on the way, and the lock is given back.
    await expect(openLocalLedger({ dir: state() })).rejects.toThrow(/damaged/);
  });

  test('a second ledger on the same directory is refused, a stale lock is not', async () => {
    const first = await openLocalLedger({ dir: state() });
    await expect(openLocalLedger({ dir: state() })).rejects.toMatchObject({ code: 'ownership/refused' });
    await first.close();
    await writeFile(join(state(), 'lock'), '999999999 1 no-such-boot');
    await (await lockDirectory(state()))();
    expect(await readdir(state())).not.toContain('lock');
  });

  test('checkpoints keep the state, whenever power is lost', async () => {
    const storage = memoryStorage();
    const core = await LedgerCore.open({ storage, logger: silent, segmentBytesMax: 20_000 });
    const seats = { as: (who: typeof control) => ({ propose: (e: LedgerEvent[]) => core.propose(e, who) }) };
    await runningVm(seats as never);
    for (let n = 0; n < 60; n += 1) {
      await core.propose([desire(n % 2 === 0 ? 'stopped' : 'running')], control);
      const after = await LedgerCore.open({ storage: storage.losePower(() => 0), logger: silent });
      expect(after.state.store()).toEqual(core.state.store());
    }
    const names = await storage.list();
    expect(names.some((name) => name.startsWith('checkpoint'))).toBe(true);
    expect(names.length).toBeLessThanOrEqual(3);
  });

  test('proposals that wait together share one sync', async () => {
    const storage = memoryStorage();
    const core = await LedgerCore.open({ storage, logger: silent });
    const before = storage.syncCount();
    const { joinHost } = await import('../support/ledger-fixtures.ts');
    await Promise.all(Array.from({ length: 100 }, (_, n) => core.propose([
      n % 2 === 0 ? joinHost(hostA) : { kind: 'cordon-host', host: hostA, cordoned: n % 4 === 1 },
    ], control)));
    expect(storage.syncCount() - before).toBe(1);
  });
});

describe('a full disk', () => {
  test('tmpfs: refused with disk/full, nothing lost, works again when there is room', async (context) => {
    if (process.getuid?.() !== 0) {
      context.skip('needs root to mount a small tmpfs');
      return;
    }
    const mount = join(dir, 'small');
    await (await import('node:fs/promises')).mkdir(mount);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', mount]);
    try {
      const local = await openLocalLedger({ dir: join(mount, 'state') });
      await runningVm(local);
      await writeFile(join(mount, 'ballast'), Buffer.alloc(150_000));
      let accepted = 0;
      let code = '';
      while (code === '' && accepted < 500) {
        await local.as(control).propose([desire(accepted % 2 === 0 ? 'stopped' : 'running')]).then(
          () => { accepted += 1; }, (error: { code: string }) => { code = error.code; });
      }
      expect(code).toBe('disk/full');
      const { desired } = await local.as(control).readVm(vm) ?? {};
      expect(desired).toBe(accepted % 2 === 0 ? 'running' : 'stopped');
      await expect(local.as(control).propose([desire(desired === 'running' ? 'stopped' : 'running')]))
        .rejects.toMatchObject({ code: 'disk/full' });
      // Reads and renewals need no room, also beside proposals that do.
      const other = desire(desired === 'running' ? 'stopped' : 'running');
      const [written, renewed] = await Promise.allSettled([
        local.as(control).propose([other]),
        local.as(asHost(hostA)).propose([{ kind: 'renew', vm, epoch: 1 }]),
      ]);
      expect(written).toMatchObject({ status: 'rejected', reason: { code: 'disk/full' } });
      expect(renewed).toMatchObject({ status: 'fulfilled', value: [{ accepted: true }] });
      await rm(join(mount, 'ballast'));
      expect((await statfs(mount)).bavail).toBeGreaterThan(0);
      await must(local.as(control).propose([desire(desired === 'running' ? 'stopped' : 'running')]));
      const { index } = local.core.state;
      await local.close();
      const again = await openLocalLedger({ dir: join(mount, 'state') });
      expect(again.core.state.index).toBe(index);
      await again.close();
    } finally {
      execFileSync('umount', [mount]);
    }
  });
});

describe('a disk that fails', () => {
  test('a failed sync ends the ledger: nothing is answered that may not be durable', async () => {
    const storage = memoryStorage();
    let failing = false;
    const broken: string[] = [];
    const core = await LedgerCore.open({
      logger: silent, onBroken: (error) => void broken.push(error.message),
      storage: {
        ...storage,
        openAppend: async (name) => {
          const file = await storage.openAppend(name);
          return {
            ...file,
            sync: async () => {
              if (failing) throw Object.assign(new Error('EIO'), { code: 'EIO' });
              await file.sync();
            },
          };
        },
      },
    });
    const { joinHost } = await import('../support/ledger-fixtures.ts');
    await core.propose([joinHost(hostA)], asHost(hostA));
    failing = true;
    await expect(core.propose([joinHost(hostB)], asHost(hostB)))
      .rejects.toMatchObject({ code: 'ownership/unreachable' });
    expect(broken).toHaveLength(1);
    expect(() => core.listHosts()).toThrow(/disk failed/);
    failing = false;
    await expect(core.propose([joinHost(hostB)], asHost(hostB)))
      .rejects.toMatchObject({ code: 'ownership/unreachable' });
    const again = await LedgerCore.open({ storage: storage.losePower(() => 0), logger: silent });
    expect(again.listHosts()).toHaveLength(1);
  });
});

describe('backup and restore', () => {
  test('a backup of a running ledger restores to what was acknowledged before it', async () => {
    const local = await openLocalLedger({ dir: state() });
    await runningVm(local);
    const writing = (async () => {
      for (let n = 0; n < 200; n += 1) {
        await local.as(control).propose([desire(n % 2 === 0 ? 'stopped' : 'running')]);
      }
    })();
    const acknowledged = local.core.state.index;
    const made = await backupLedger({ stateDir: state(), to: join(dir, 'backup'), nowMs: 1 });
    expect(made.index).toBeGreaterThanOrEqual(acknowledged);
    await writing;
    await local.close();
    const copy = join(dir, 'restored');
    await restoreLedger({ from: join(dir, 'backup'), stateDir: copy, kind: 'complete', nowMs: 2 });
    const restored = await openLocalLedger({ dir: copy });
    expect(restored.core.state.index).toBe(made.index);
    expect(await restored.as(control).readVm(vm)).toMatchObject({ epoch: 1, owner: hostA });
    await restored.close();
    await expect(restoreLedger({
      from: join(dir, 'backup'), stateDir: copy, kind: 'complete', nowMs: 2,
    })).rejects.toMatchObject({ code: 'input/invalid' });
    await expect(backupLedger({ stateDir: copy, to: join(dir, 'backup'), nowMs: 1 }))
      .rejects.toMatchObject({ code: 'input/invalid' });
  });

  test('an old backup raises epochs and starts nothing by itself', async () => {
    const local = await openLocalLedger({ dir: state() });
    await runningVm(local);
    await backupLedger({ stateDir: state(), to: join(dir, 'backup'), nowMs: 1 });
    await local.close();
    const copy = join(dir, 'restored');
    await restoreLedger({ from: join(dir, 'backup'), stateDir: copy, kind: 'rolled-back', nowMs: 2 });
    const restored = await openLocalLedger({ dir: copy });
    const epoch = 1 + rolledBackEpochStep;
    const start = (imageStamp: number | null): LedgerEvent =>
      ({ kind: 'started', vm, epoch, incarnation: vmm(3), imageStamp });
    const owner = restored.as(asHost(hostA));
    expect(await owner.readVm(vm)).toMatchObject({ epoch, desired: 'stopped', owner: hostA });
    expect(await owner.propose([start(null)])).toMatchObject([{ accepted: false }]);
    await must(restored.as(control).propose([desire('running', epoch)]));
    expect(await owner.propose([start(1)])).toMatchObject([{ accepted: false }]);
    await must(owner.propose([start(null)]));
    await restored.close();
  });

  test('a damaged backup is refused', async () => {
    const local = await openLocalLedger({ dir: state() });
    await runningVm(local);
    await local.close();
    const made = await backupLedger({ stateDir: state(), to: join(dir, 'backup'), nowMs: 1 });
    const path = join(dir, 'backup', made.file);
    const bytes = await readFile(path);
    bytes[200] = 0;
    await writeFile(path, bytes);
    await expect(restoreLedger({
      from: join(dir, 'backup'), stateDir: join(dir, 'r'), kind: 'complete', nowMs: 2,
    })).rejects.toMatchObject({ code: 'input/invalid' });
  });
});

describe('verify', () => {
  test('finds a step that the specification forbids', async () => {
    const local = await openLocalLedger({ dir: state() });
    await runningVm(local);
    await local.close();
    const storage = await directoryStorage(state());
    expect((await verifyLedger(storage)).problems).toEqual([]);
    // A log that a mistaken ledger could have written: the owner changes without a commit.
    const { encodeLines } = await import('../../runners/group/ledger-log/log-format.ts');
    const old = local.core.state.vm(vm);
    if (old === undefined) throw new Error('no VM');
    const stolen = { ...old, entry: { ...old.entry, owner: hostB, epoch: 2 } };
    await appendFile(await segmentOf(), encodeLines([{
      version: 1, index: local.core.state.index + 1, atMs: 1, proposer: control,
      event: desire('stopped'), change: { vm: stolen, host: null, ended: null },
    }]));
    expect((await verifyLedger(storage)).problems).toHaveLength(1);
  });
});
