/**
 * A move that is hurt from inside: the target runs full in mid-copy, its disk or its memory file
 * system; the VM's own user, all that a broken-out guest would be, says garbage on every socket it can
 * reach. The move ends and says why, or goes on; the VM runs, nothing of a failed try stays, and the
 * next move succeeds.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync, mkdirSync, openSync, readdirSync, rmSync, statfsSync, statSync, writeFileSync, writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { mib } from '../../contracts/units.ts';
import { runCommand } from '../../lab/command.ts';
import { hostStateDirectory, imageDirectory } from '../../lab/compose.ts';
import type { Lab } from '../../lab/lab.ts';
import type { LabHost } from '../../lab/network/plan.ts';
import { vmPaths } from '../../runners/hypervisor/vm-directory.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { Move, StageGuest } from '../support/move-stage.ts';
import type { Answer } from '../support/stranger.ts';

const stranger = join(import.meta.dirname, '../support/stranger.ts');
const memoryMib = 192;
const diskMib = 64;
/** What preflight wants beside memory and disk, MiB, and some room for the host's own files. */
const [memoryReserveMib, diskReserveMib, spareMib] = [192, 256, 48];

interface OwnSocket {
  readonly name: string;
  readonly path: string;
  readonly uid: number;
}

/** A file system of its own, too small to be shared with anything. */
async function mountSmall(path: string, sizeMib: number): Promise<void> {
  mkdirSync(path, { recursive: true, mode: 0o755 });
  await runCommand(['mount', '-t', 'tmpfs', '-o', `size=${sizeMib}m,mode=755`, 'small', path]);
}

/** Fills a file system to its last block; answers what takes the filling away. */
function fill(directory: string): () => void {
  const path = join(directory, 'filling');
  const file = openSync(path, 'w');
  for (const size of [mib, 4096]) {
    const zeros = Buffer.alloc(size);
    try {
      for (;;) if (writeSync(file, zeros) < size) break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    }
  }
  closeSync(file);
  return () => rmSync(path);
}

describeInLab('a move that is hurt', () => {
  let stage: MoveStage;
  let guest: StageGuest;
  const stateOf = (lab: Lab): string => hostStateDirectory(lab, lab.host(2));
  const memoryOf = (lab: Lab): string => join(lab.directories.memory, lab.host(2).name);

  beforeAll(async () => {
    stage = await MoveStage.raise({
      hostCount: 2,
      prepare: async (lab) => {
        await mountSmall(stateOf(lab), diskMib + diskReserveMib + spareMib);
        await mountSmall(memoryOf(lab), memoryMib + memoryReserveMib + spareMib);
      },
    });
    const image = join(imageDirectory(stage.lab), 'noise.raw');
    writeFileSync(image, randomBytes(diskMib * mib));
    // Its disk is only carried along: no file system, no service on it.
    guest = await stage.guest({
      name: 'heavy', octet: 140, memoryMib, dataMib: 32,
      commandLine: 'novacron.disk_device=/dev/none',
      disk: { format: 'raw', sizeBytes: diskMib * mib, sourceImage: image },
    });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  /** A move that is copying the disk and takes its time. */
  const slowMove = async (): Promise<Move> => {
    const move = await stage.move({
      vm: guest.vm, target: (await guest.otherHost()).name,
      policy: { bandwidthBytesPerSecond: 4_000_000 } });
    await untilCopied(move.migration);
    return move;
  };
  const untilCopied = (migration: Move['migration']): Promise<true> =>
    until('the disk is being copied', async () => {
      const { progress, outcome } = (await stage.view(migration)).status;
      if (outcome !== null) throw new Error(`it ended before: ${JSON.stringify(outcome)}`);
      return (progress?.diskBytesDone ?? 0) >= mib ? true : null;
    }, 60_000);
  const runDirectory = (host: LabHost): string =>
    vmPaths(join(hostStateDirectory(stage.lab, host), 'vms'), guest.vm).runDirectory;
  /** Sockets in the VM's own folder on both hosts, and who owns them there. */
  const ownSockets = (): Promise<OwnSocket[]> => Promise.resolve(
    [stage.lab.host(1), stage.lab.host(2)].flatMap((host) => readdirSync(runDirectory(host))
      .map((name) => ({ name: `${host.name} ${name}`, path: join(runDirectory(host), name) }))
      .filter(({ path }) => statSync(path).isSocket())
      .map((door) => ({ ...door, uid: statSync(runDirectory(host)).uid }))));
  const carriesTheMove = (name: string): boolean => /(incoming|nbd|mirror|device)/.test(name);
  const knockAsOwner = async (sockets: readonly OwnSocket[]): Promise<Answer[]> => {
    const knocks = [
      { kind: 'bytes', hex: randomBytes(2_048).toString('hex') }, { kind: 'http', hex: '' },
      { kind: 'bytes', hex: Buffer.from('{"execute":\n{"QMP":[]}\n').toString('hex') },
    ] as const;
    const answers: Answer[] = [];
    for (const uid of new Set(sockets.map((socket) => socket.uid))) {
      const doors = sockets.filter((socket) => socket.uid === uid);
      const output = await runCommand([
        process.execPath, stranger, JSON.stringify({ doors, knocks, uid })]);
      answers.push(...output.trim().split('\n').map((line) => JSON.parse(line) as Answer));
    }
    return answers;
  };

  it('refuses what does not fit before anything moves', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    for (const [directory, code] of [
      [stateOf(stage.lab), 'preflight/disk'], [memoryOf(stage.lab), 'preflight/memory'],
    ] as const) {
      const empty = fill(directory);
      expect(statfsSync(directory).bavail).toBe(0);
      const { outcome } = await stage.move({ vm: guest.vm, target: 'h2' });
      expect(await outcome, code).toMatchObject({ kind: 'failed', failure: { code } });
      empty();
    }
    await guest.expectAt(source, before, 0);
  });

  it('by a full disk of the target in mid-copy', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    const { outcome } = await slowMove();
    const empty = fill(stateOf(stage.lab));
    const ended = await outcome;
    expect(ended).toMatchObject({
      kind: 'failed', runsOn: source.name, compensationFailures: [],
      failure: { code: 'disk/full', detail: expect.stringContaining('data') as string },
    });
    empty();
    await guest.expectAt(source, before, 0);
  });

  it('by full memory of the target in mid-copy; with room again the VM moves', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: 'h2', policy: { bandwidthBytesPerSecond: 16_000_000 } });
    await until('the memory is being copied', async () => {
      const { progress, outcome: ended } = (await stage.view(migration)).status;
      if (ended !== null) throw new Error(`it ended before: ${JSON.stringify(ended)}`);
      return progress?.phase === 'memory' ? true : null;
    }, 60_000);
    const empty = fill(memoryOf(stage.lab));
    const ended = await outcome;
    empty();
    expect(ended).toMatchObject({
      kind: 'failed', runsOn: source.name, compensationFailures: [],
      failure: {
        code: 'preflight/memory', detail: expect.stringMatching(/no space left/i) as string,
      },
    });
    await guest.expectAt(source, before, 0);
    await guest.moveAndExpect();
    // Home again. Nothing of it stays in the small file system, not even an open file.
    await guest.moveAndExpect();
    const { blocks, bfree, bsize } = statfsSync(memoryOf(stage.lab));
    expect((blocks - bfree) * bsize, 'taken of the memory file system').toBeLessThan(mib);
  });

  it('by garbage of the VM\'s own user on its monitors and consoles', async () => {
    const before = await guest.begin();
    const target = await guest.otherHost();
    const { migration, outcome } = await slowMove();
    const sockets = await ownSockets();
    expect(sockets.map(({ name }) => name)).toEqual(expect.arrayContaining([
      'h1 qmp.sock', 'h1 observer.sock', 'h1 console.sock', 'h2 qmp.sock', 'h2 observer.sock']));
    const answers = await knockAsOwner(sockets.filter(({ name }) => !carriesTheMove(name)));
    expect(answers.some(({ received }) => received > 0), 'a monitor answered').toBe(true);
    await stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    await completed(outcome);
    await guest.expectAt(target, before, 1);
    await guest.moveAndExpect();
  });

  it('by garbage of the VM\'s own user on the sockets that carry the move', async () => {
    const before = await guest.begin();
    const [source, target] = [await guest.host(), await guest.otherHost()];
    const { migration, outcome } = await slowMove();
    const sockets = (await ownSockets()).filter(({ name }) => carriesTheMove(name));
    expect(sockets.map(({ name }) => name)).toEqual(expect.arrayContaining([
      'h2 incoming.sock', 'h2 nbd.sock']));
    await knockAsOwner(sockets);
    await stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 })
      .catch(() => undefined);
    const ended = await outcome;
    console.info(`garbage on ${sockets.map(({ name }) => name).join(', ')}: ${ended.kind} `
      + `${ended.kind === 'failed' ? `${ended.failure.code}: ${ended.failure.detail}` : ''}`);
    if (ended.kind === 'completed') {
      await guest.expectAt(target, before, 1);
    } else {
      expect(ended).toMatchObject({
        kind: 'failed', runsOn: source.name, compensationFailures: [],
        failure: { code: expect.stringMatching(/^(engine|disk|vmm)\//) as string },
      });
      await guest.expectAt(source, before, 0);
    }
    await guest.moveAndExpect();
  });
});
