/**
 * Bad input of every kind at the real product: wrong specs and names, hosts that can not take the
 * VM, hostile images, wrong and revoked certificates, garbage on every port while a move runs. Each
 * is a clear error or nothing at all, and the guest that lives through it stays whole.
 */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { hostName, vmName } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import type { MigrationOutcome } from '../../contracts/migration.ts';
import { gib, mib } from '../../contracts/units.ts';
import { runCommand } from '../../lab/command.ts';
import { hostStateDirectory, imageDirectory, labPorts } from '../../lab/compose.ts';
import { controlAddress } from '../../lab/network/plan.ts';
import { commandIn } from '../../lab/processes.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import type { IssuedFiles } from '../../payloads/certificates.ts';
import { openLedger } from '../../payloads/ledger-client.ts';
import { runLifecycle } from '../../payloads/lifecycle-client.ts';
import type { LifecycleOutcome } from '../../contracts/vm-lifecycle.ts';
import { openRevocationList, revokeCertificates } from '../../payloads/revocation.ts';
import type { VmSpec } from '../../contracts/runner.ts';
import { describeInLab } from '../support/lab-needs.ts';
import { completed, failureCodeOf, MoveStage, stageMsMax, until } from '../support/move-stage.ts';
import type { StageGuest } from '../support/move-stage.ts';
import type { Answer, StrangerOrder } from '../support/stranger.ts';

const stranger = join(import.meta.dirname, '../support/stranger.ts');
const seed = process.env['NOVACRON_TEST_SEED'] ?? randomBytes(4).toString('hex');
/** Bytes that look random and are the same for the same seed. */
const noise = (length: number): string => {
  const blocks = Array.from({ length: Math.ceil(length / 32) }, (_, index) =>
    createHash('sha256').update(`${seed}/${index}`).digest());
  return Buffer.concat(blocks).subarray(0, length).toString('hex');
};

/** Images whose headers lie: 8 EiB large, tables beyond the file's end, cut in the middle. */
async function hurtImages(directory: string): Promise<[string, string, string]> {
  const sound = join(directory, 'sound.qcow2');
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', sound, '1M']);
  const make = (name: string, change: (image: Buffer) => Buffer): string => {
    const path = join(directory, name);
    writeFileSync(path, change(readFileSync(sound)));
    return path;
  };
  return [
    make('huge.qcow2', (image) => { image.writeBigUInt64BE(2n ** 63n - 1n, 24); return image; }),
    make('corrupt.qcow2', (image) => { image.writeBigUInt64BE(2n ** 40n, 40); return image; }),
    make('cut.qcow2', (image) => image.subarray(0, 60)),
  ];
}

const failureOf = (outcome: MigrationOutcome | LifecycleOutcome): string =>
  outcome.kind === 'failed' ? outcome.failure.code : outcome.kind;

describeInLab('bad input', () => {
  let stage: MoveStage;
  let guest: StageGuest;
  /** Runs, and nobody talks to it: what may be hurt. */
  const idle = vmName('idle');

  const create = async (spec: VmSpec, start: boolean): Promise<LifecycleOutcome> => {
    const { outcome } = await runLifecycle(stage.client, {
      step: 'create',
      input: {
        version: 1, spec, host: hostName('h1'), request: stage.freshRequest(), start,
      },
    });
    return outcome;
  };
  const refusalOfMove = async (vm: VmName, target: string): Promise<string> =>
    failureOf(await (await stage.move({ vm, target })).outcome);
  const ask = async (namespace: string, order: StrangerOrder): Promise<Answer[]> => {
    const output = await runCommand(commandIn(namespace, [
      process.execPath, stranger, JSON.stringify(order)]));
    return output.trim().split('\n').map((line) => JSON.parse(line) as Answer);
  };

  beforeAll(async () => {
    console.info(`seed ${seed} (NOVACRON_TEST_SEED)`);
    stage = await MoveStage.raise({ hostCount: 2 });
    guest = await stage.guest({ name: 'steady', octet: 100, dataMib: 48 });
    const spec = stage.spec({
      name: idle, octet: 101, memoryMib: 128, commandLine: 'novacron.disk_device=/dev/none',
      disk: { format: 'qcow2', sizeBytes: 512 * gib, sourceImage: null },
    });
    expect(await create(spec, true)).toMatchObject({ kind: 'completed', runState: 'running' });
  }, stageMsMax);
  afterAll(() => stage.lower(), stageMsMax);

  it('names what is wrong with a move before anything moves', async () => {
    const before = await stage.entry(idle);
    expect(await refusalOfMove(vmName('nobody'), 'h2')).toBe('vm/unknown');
    expect(await refusalOfMove(idle, 'h9')).toBe('host/unknown');
    expect(await refusalOfMove(idle, 'h1')).toBe('migration/same-host');
    expect(await refusalOfMove(idle, 'h2'), 'half a TiB does not fit').toBe('preflight/disk');
    expect(await stage.entry(idle)).toEqual(before);
    await stage.expectClean(stage.lab.host(2), idle);
  });

  it('refuses a cordoned target and an address that somebody else has there', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    const target = await guest.otherHost();
    const cordon = (cordoned: boolean): Promise<unknown> => stage.ledger.propose([
      { kind: 'cordon-host', host: hostName(target.name), cordoned }]);
    await cordon(true);
    expect(await refusalOfMove(guest.vm, target.name)).toBe('host/cordoned');
    await cordon(false);
    // A machine at the target's segment answers for the address; the client itself is elsewhere.
    const bridge = ['ip', '-n', stage.lab.plan.switchNamespace, 'addr'];
    const foreign = [`${guest.address}/32`, 'dev', 'br-vm'];
    await runCommand([...bridge, 'add', ...foreign]);
    try {
      expect(await refusalOfMove(guest.vm, target.name)).toBe('preflight/address-taken');
    } finally {
      await runCommand([...bridge, 'del', ...foreign]);
    }
    await guest.expectAt(source, before, 0);
  });

  it('refuses wrong specs, hostile images and path names, and leaves nothing of them', async () => {
    const images = imageDirectory(stage.lab);
    const secret = join(images, 'secret.raw');
    writeFileSync(secret, Buffer.alloc(mib, 's'));
    const hostile = join(images, 'hostile.qcow2');
    await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', secret, '-F', 'raw', hostile]);
    const external = join(images, 'external.qcow2');
    await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
      `data_file=${join(images, 'data-file.raw')}`, external, '1M']);
    const [huge, corrupt, cut] = await hurtImages(images);
    const good = stage.spec({ name: 'hostile', octet: 102, memoryMib: 128 });
    const disk = (sourceImage: string, format: 'raw' | 'qcow2'): VmSpec['disks'] => [
      { name: 'data', format, sizeBytes: 64 * mib, sourceImage, volume: 'local' }];
    const kernel = (path: string): VmSpec['boot'] => ({
      kind: 'kernel', kernel: path, initrd: null, commandLine: 'quiet' });
    const wrong: readonly [string, VmSpec, readonly string[]][] = [
      ['backing file', { ...good, disks: disk(hostile, 'qcow2') }, ['vm/image-refused']],
      ['qcow2 called raw', { ...good, disks: disk(hostile, 'raw') }, ['vm/image-refused']],
      ['external data file', { ...good, disks: disk(external, 'qcow2') }, ['vm/image-refused']],
      ['8 EiB', { ...good, disks: disk(huge, 'qcow2') }, ['vm/image-refused']],
      ['tables nowhere', { ...good, disks: disk(corrupt, 'qcow2') }, ['vm/image-refused']],
      ['half a header', { ...good, disks: disk(cut, 'qcow2') }, ['vm/image-refused']],
      ['image elsewhere', { ...good, disks: disk('/etc/passwd', 'raw') },
        ['vm/image-refused', 'input/invalid']],
      ['kernel elsewhere', { ...good, boot: kernel('/etc/shadow') },
        ['vm/image-refused', 'input/invalid']],
      ['way out', { ...good, boot: kernel(`${images}/../certificates/ca-key.pem`) },
        ['input/invalid']],
      ['name as a path', { ...good, name: '../../escape' as VmName }, ['input/invalid']],
      ['no memory', { ...good, memoryBytes: 0 }, ['input/invalid']],
      ['option in a name', { ...good, cpuModel: 'qemu64,x=y' }, ['input/invalid']],
      ['line break', { ...good, boot: { kind: 'kernel', kernel: stage.image.kernel,
        initrd: null, commandLine: 'quiet\n-monitor stdio' } }, ['input/invalid']],
    ];
    for (const [what, spec, codes] of wrong) {
      // The client may refuse by itself, before a workflow is started: as good as the outcome.
      const code = await create(spec, true).then(failureOf,
        (error: unknown) => failureCodeOf(Promise.reject(error)));
      expect(codes, what).toContain(code);
    }
    expect(await stage.ledger.readVm(vmName('hostile'))).toBeNull();
    const folders = readdirSync(join(hostStateDirectory(stage.lab, stage.lab.host(1)), 'vms'));
    expect(folders.toSorted()).toEqual(['idle', 'steady']);
    expect(existsSync(join(stage.lab.directories.data, 'escape'))).toBe(false);
  });

  it('keeps a move going through garbage on every port', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    const target = await guest.otherHost();
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: { bandwidthBytesPerSecond: 6_000_000 } });
    await stage.untilSent(migration);
    const knocks = [
      { kind: 'bytes', hex: noise(4_096) }, { kind: 'http', hex: '' },
      { kind: 'bytes', hex: `ffffffff${noise(64)}` }, { kind: 'tls', hex: noise(512), papers: null },
    ] as const;
    const hosts = stage.lab.plan.hosts;
    const doors = [
      { name: 'ledger', address: controlAddress, port: labPorts.ledger },
      { name: 'front', address: controlAddress, port: labPorts.temporalFront },
      ...hosts.flatMap(({ name, migrationAddress: address }) => [
        { name: `${name} peer`, address, port: labPorts.peer },
        { name: `${name} lanes`, address, port: labPorts.lanes },
      ]),
    ];
    const metrics = [
      ...hosts.map(({ name, managementAddress: address }) =>
        ({ name: `${name} metrics`, address, port: labPorts.metrics })),
      { name: 'ledger metrics', address: controlAddress, port: labPorts.metrics },
      { name: 'control metrics', address: controlAddress, port: labPorts.metrics + 1 },
    ];
    const locals = [
      ...hosts.map(({ name }) => ({
        name: `${name} local`, path: join(stage.lab.directories.runtime, name, 'host.sock') })),
      ...hosts.map((host) => ({ name: `${host.name} guard`, path: join(
        hostStateDirectory(stage.lab, host), 'vms', guest.vm, 'guard.sock') }))
        .filter(({ path }) => existsSync(path)),
    ];
    expect(locals.map(({ name }) => name)).toContain(`${source.name} guard`);
    const answers = [
      ...await ask(source.namespace, { doors: [...doors, ...metrics], knocks }),
      ...await ask(source.namespace, { doors: locals, knocks: knocks.slice(0, 3) }),
    ];
    expect(answers.length).toBe((doors.length + metrics.length) * 4 + locals.length * 3);
    const secured = new Set(doors.map(({ name }) => name));
    const talkative = answers.filter(({ door, received, text }) =>
      secured.has(door) && received > 0 && !text.startsWith('\u0015'));
    expect(talkative, 'who has no certificate is told nothing').toEqual([]);
    expect((await stage.view(migration)).status.outcome).toBeNull();
    await stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    await completed(outcome);
    await guest.expectAt(target, before, 1);
    for (const name of ['ledger', 'temporal', 'control', 'host-h1', 'host-h2']) {
      expect(stage.lab.isRunning(name), name).toBe(true);
    }
  });

  it('lets no wrong, foreign or revoked certificate near a move', async () => {
    const before = await guest.begin();
    const source = await guest.host();
    const target = await guest.otherHost();
    const dir = join(stage.lab.directories.data, 'certificates');
    const foreignDir = join(stage.lab.directories.data, 'foreign');
    const nowMs = Date.now();
    await createAuthority({ dir: foreignDir, nowMs });
    const issue = (of: string, role: 'host' | 'operator', name: string): Promise<IssuedFiles> =>
      issueCertificate({ dir: of, identity: { role, name }, addresses: [], nowMs });
    const foreign = await issue(foreignDir, 'host', source.name);
    const operator = await issue(dir, 'operator', 'curious');
    const other = await issue(dir, 'host', 'h9');
    const revoked = await issue(dir, 'host', 'h8');
    await revokeCertificates({ dir, of: { serial: revoked.serial }, reason: 'the test', nowMs });
    const { migration, outcome } = await stage.move({
      vm: guest.vm, target: target.name, policy: { bandwidthBytesPerSecond: 6_000_000 } });
    await stage.untilSent(migration);
    const hello = Buffer.from(JSON.stringify({
      version: 1, kind: 'hello', migration, epoch: before.entry.epoch }));
    const length = Buffer.alloc(4);
    length.writeUInt32BE(hello.length);
    const hex = Buffer.concat([length, hello]).toString('hex');
    const data = [
      { name: 'peer', address: target.migrationAddress, port: labPorts.peer },
      { name: 'lanes', address: target.migrationAddress, port: labPorts.lanes },
    ];
    const ledger = { name: 'ledger', address: controlAddress, port: labPorts.ledger };
    for (const papers of [foreign, revoked, operator, other]) {
      const isKnown = papers === other || papers === operator;
      const doors = isKnown ? data : [...data, ledger];
      const answers = await ask(source.namespace, {
        doors, knocks: [{ kind: 'tls', hex, papers }] });
      for (const answer of answers) {
        expect(answer.text, JSON.stringify(answer)).not.toMatch(/welcome|"items"/);
        expect(answer.end, JSON.stringify(answer)).not.toBe('open');
      }
    }
    // A host that exists for nobody else may speak to the ledger, about its own things.
    const view = await openLedger({
      address: '127.0.0.1', port: stage.services.ledgerPort, tls: other,
      revoked: openRevocationList({
        path: join(dir, 'revoked.json'), caPath: join(dir, 'ca.pem') }),
    });
    const [verdict] = await view.propose([
      { kind: 'abort', vm: guest.vm, migration, epoch: before.entry.epoch, reason: 'mischief' }]);
    expect(verdict).toMatchObject({ accepted: false });
    await view.close();
    await until('still copying', async () =>
      (await stage.view(migration)).status.outcome === null ? true : null, 1_000);
    await stage.command(migration, { kind: 'set-bandwidth', bandwidthBytesPerSecond: 0 });
    await completed(outcome);
    await guest.expectAt(target, before, 1);
  });
});
