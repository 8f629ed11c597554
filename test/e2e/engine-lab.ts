/**
 * Bare QEMUs and the memory engine between them, without runner, ledger and workflow: what the
 * engine alone does and takes.
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createConnection } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { mib } from '../../contracts/units.ts';
import { createAuthority, issueCertificate } from '../../payloads/certificates.ts';
import { openMemoryEngine } from '../../runners/data-plane/memory-engine.ts';
import type {
  ConvergenceDecision, FinishedMemory, LaneListener, LaneTls, MemoryEngine, MemoryRecord,
  SourceSession, SourceSnapshot, TargetSession,
} from '../../runners/data-plane/sessions.ts';

const root = new URL('../..', import.meta.url).pathname;
const guest = { kernel: join(root, '.cache/guest/vmlinuz'), initrd: join(root, '.cache/guest/initrd') };
const qemu = '/usr/bin/qemu-system-x86_64';
/** UEFI's code and empty variables. */
export const uefi = {
  code: '/usr/share/OVMF/OVMF_CODE_4M.fd', variables: '/usr/share/OVMF/OVMF_VARS_4M.fd',
} as const;

/** What these tests need and the machine lacks; null when nothing. */
export function missingParts(): string | null {
  const needed = [guest.kernel, guest.initrd, qemu, join(root, 'native/generated')];
  return needed.find((path) => !existsSync(path)) ?? null;
}

interface QmpEvent {
  readonly event: string;
  readonly data: { readonly status?: string };
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

/** A raw disk and how the VMM opens it. */
export interface LabDisk {
  readonly path: string;
  readonly aio: 'threads' | 'native' | 'io_uring';
  readonly direct: boolean;
}

/** A VMM, its memory file, its monitor. */
export class Vmm {
  readonly pid: number;
  readonly memoryPath: string;
  readonly logPath: string;
  /** A second monitor, for the product's own client. */
  readonly inspectionPath: string;
  readonly events: QmpEvent[] = [];
  #monitor: Socket | undefined;
  #answers: ((line: { return?: unknown; error?: { desc: string } }) => void)[] = [];
  readonly #qmpPath: string;

  constructor(options: {
    dir: string; name: string; memoryBytes: number; vcpuCount: number; load: string; incoming: boolean;
    disk: LabDisk | null; firmware: 'bios' | 'uefi'; align: '2M' | null;
  }) {
    const { dir, name } = options;
    this.memoryPath = join(dir, `${name}.ram`);
    this.logPath = join(dir, `${name}.log`);
    this.#qmpPath = join(dir, `${name}.qmp`);
    this.inspectionPath = join(dir, `${name}.inspect`);
    const parameters = [
      '-accel', 'tcg,thread=multi', '-cpu', 'qemu64', '-smp', String(options.vcpuCount),
      '-m', `${options.memoryBytes / mib}M`, ...this.#machine(options),
      '-object', `memory-backend-file,id=ram0,mem-path=${this.memoryPath},share=on,`
        + `size=${options.memoryBytes / mib}M`
        + (options.align === null ? '' : `,align=${options.align}`),
      '-nodefaults', '-vga', 'none', '-display', 'none', '-kernel', guest.kernel, '-initrd', guest.initrd,
      '-append', `console=ttyS0 quiet panic=-1 mitigations=off ${options.load}`,
      '-serial', `file:${this.logPath}`, '-qmp', `unix:${this.#qmpPath},server=on,wait=off`,
      '-qmp', `unix:${this.inspectionPath},server=on,wait=off`,
      '-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
      ...(options.disk === null ? [] : [
        '-blockdev', JSON.stringify({
          driver: 'file', 'node-name': 'disk', filename: options.disk.path, aio: options.disk.aio,
          cache: { direct: options.disk.direct }, locking: 'off',
        }),
        '-device', 'virtio-blk-pci,drive=disk,addr=6',
      ]),
      ...(options.incoming ? ['-incoming', 'defer'] : []),
    ];
    // Not a child of this process, as under a guard: Node would take ptrace stops for exits.
    const detached = '"$0" "$@" </dev/null >/dev/null 2>"$ERRORS" & echo $!';
    this.pid = Number(execFileSync('/bin/sh', ['-c', detached, qemu, ...parameters], {
      env: { ERRORS: join(dir, `${name}.err`) }, encoding: 'utf8',
    }));
  }

  #machine({ dir, name, firmware }: {
    readonly dir: string; readonly name: string; readonly firmware: 'bios' | 'uefi';
  }): readonly string[] {
    if (firmware === 'bios') return ['-machine', 'pc-i440fx-7.2,memory-backend=ram0'];
    const variables = join(dir, `${name}.vars`);
    copyFileSync(uefi.variables, variables);
    const node = (name: string, filename: string, isFixed: boolean): string => JSON.stringify({
      driver: 'file', 'node-name': name, filename, 'read-only': isFixed });
    return [
      '-blockdev', node('code', uefi.code, true), '-blockdev', node('variables', variables, false),
      '-machine', 'pc-q35-7.2,memory-backend=ram0,pflash0=code,pflash1=variables',
    ];
  }

  async open(): Promise<void> {
    for (let attempt = 0; !existsSync(this.#qmpPath); attempt += 1) {
      if (attempt > 500) throw new Error('the VMM made no monitor');
      await sleep(20);
    }
    const monitor = createConnection(this.#qmpPath);
    this.#monitor = monitor;
    let rest = '';
    monitor.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines.filter((each) => each.trim() !== '')) this.#take(JSON.parse(line));
    });
    await this.run('qmp_capabilities');
    await this.run('migrate-set-capabilities', {
      capabilities: ['x-ignore-shared', 'events'].map((capability) => ({ capability, state: true })),
    });
  }

  #take(line: QmpEvent & { QMP?: unknown; return?: unknown; error?: { desc: string } }): void {
    if (line.event !== undefined) this.events.push(line);
    else if (line.QMP === undefined) this.#answers.shift()?.(line);
  }

  async run(execute: string, parameters: object = {}): Promise<unknown> {
    const answer = new Promise<{ return?: unknown; error?: { desc: string } }>((resolve) => {
      this.#answers.push(resolve);
    });
    this.#monitor?.write(`${JSON.stringify({ execute, arguments: parameters })}\n`);
    const { error, return: value } = await answer;
    if (error !== undefined) throw new Error(`${execute}: ${error.desc}`);
    return value;
  }

  /** Waits for an event after `from` of the list; answers its stamp in ms. */
  async seen(name: string, options: { from?: number; status?: string } = {}): Promise<number> {
    for (let attempt = 0; attempt < 15_000; attempt += 1) {
      const found = this.events.slice(options.from ?? 0).find((event) => event.event === name
        && (options.status === undefined || event.data.status === options.status));
      if (found !== undefined) {
        return found.timestamp.seconds * 1e3 + found.timestamp.microseconds / 1e3;
      }
      await (attempt < 500 ? new Promise((resolve) => setImmediate(resolve)) : sleep(1));
    }
    throw new Error(`${name} ${options.status ?? ''} never came`);
  }

  get log(): string {
    return existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8') : '';
  }

  /** Counter lines of the witness: [count, failures]. */
  get ticks(): readonly (readonly [number, number])[] {
    return [...this.log.matchAll(/tick (\d+) failures (\d+)/g)]
      .map(([, count, failures]) => [Number(count), Number(failures)] as const);
  }

  async ticked(more: number): Promise<void> {
    const began = this.ticks.length;
    for (let waited = 0; this.ticks.length < began + more; waited += 100) {
      if (waited > 120_000 || !existsSync(`/proc/${this.pid}`)) {
        throw new Error(`the guest stands: ${this.log.slice(-400)}`);
      }
      await sleep(100);
    }
  }

  kill(): void {
    if (existsSync(`/proc/${this.pid}`)) process.kill(this.pid, 'SIGKILL');
    this.#monitor?.destroy();
    rmSync(this.memoryPath, { force: true });
  }
}

/** What one move took. */
export interface MoveFigures {
  readonly decision: ConvergenceDecision;
  readonly finished: FinishedMemory;
  readonly record: MemoryRecord;
  readonly totalMs: number;
  readonly preCopyMs: number;
  readonly downtimeMs: number;
  readonly parts: Readonly<Record<string, number>>;
  readonly snapshot: SourceSnapshot;
}

/** Certificates, a listener and the engine. */
export class EngineLab {
  readonly dir: string = mkdtempSync('/dev/shm/nc-engine-');
  readonly engine: MemoryEngine = openMemoryEngine();
  readonly #vmms: Vmm[] = [];
  #tls: readonly LaneTls[] = [];
  #listener: LaneListener | undefined;
  readonly #huge: string | null;
  #tries = 0;

  /** `huge`: memory files on a tmpfs of their own, mounted with that; takes root. */
  constructor({ huge = null }: { readonly huge?: 'always' | 'within_size' | null } = {}) {
    this.#huge = huge;
    if (huge === null) return;
    execFileSync('mount', ['-t', 'tmpfs', '-o', `huge=${huge}`, 'lab', this.dir]);
  }

  async open(): Promise<void> {
    const nowMs = Date.now();
    await createAuthority({ dir: this.dir, nowMs });
    this.#tls = await Promise.all(['h1', 'h2'].map(async (name) => {
      const identity = { role: 'host', name } as Parameters<typeof issueCertificate>[0]['identity'];
      const files = await issueCertificate({ dir: this.dir, identity, addresses: [], nowMs });
      return { ...files, revokedSerials: [] };
    }));
    const tls = this.#tls[1];
    if (tls === undefined) throw new Error('no certificate');
    this.#listener = this.engine.openListener({ address: '127.0.0.1', port: 0, tls });
  }

  async vmm(options: {
    memoryBytes: number; vcpuCount: number; load?: string; incoming?: boolean; disk?: LabDisk;
    /** `uefi` is on q35. */
    firmware?: 'bios' | 'uefi';
    /** Where huge pages may be mapped as such. */
    align?: '2M';
  }): Promise<Vmm> {
    const name = `vm${this.#vmms.length}`;
    const vmm = new Vmm({
      dir: this.dir, name, memoryBytes: options.memoryBytes, vcpuCount: options.vcpuCount,
      load: options.load ?? '', incoming: options.incoming ?? false, disk: options.disk ?? null,
      firmware: options.firmware ?? 'bios', align: options.align ?? null,
    });
    this.#vmms.push(vmm);
    await vmm.open();
    return vmm;
  }

  sessions(options: {
    source: Vmm; target: Vmm; memoryBytes: number; postCopy: boolean; bandwidth: number;
    downtimeBudgetMs: number;
  }): { source: SourceSession; target: TargetSession; incomingSocket: string; deviceSocket: string } {
    this.#tries += 1;
    const migration = `migrate/vm/${this.#tries}`;
    const incomingSocket = join(this.dir, `in${this.#tries}`);
    const deviceSocket = join(this.dir, `out${this.#tries}`);
    const tls = this.#tls[0];
    if (this.#listener === undefined || tls === undefined) throw new Error('not open');
    const target = this.#listener.expect({
      migration, epoch: 1, sourceIdentity: 'novacron://host/h1', memoryPath: options.target.memoryPath,
      memoryBytes: options.memoryBytes, vmmPid: options.target.pid, deviceStateSocket: incomingSocket,
      disks: [], postCopyAllowed: options.postCopy, balloon: true, adopted: false,
      exactness: 'after-resume',
      planted: null,
    });
    const source = this.engine.openSource({
      migration, epoch: 1,
      target: { address: '127.0.0.1', port: this.#listener.port, identity: 'novacron://host/h2' },
      laneCount: 2, tls, memoryPath: options.source.memoryPath, memoryBytes: options.memoryBytes,
      vmmPid: options.source.pid, deviceStateSocket: deviceSocket, disks: [], socketUid: null,
      bandwidthBytesPerSecond: options.bandwidth, downtimeBudgetMs: options.downtimeBudgetMs,
      postCopy: options.postCopy, balloon: true, deadlineMs: 120_000,
      exactness: 'after-resume', planted: null,
    });
    return { source, target, incomingSocket, deviceSocket };
  }

  /** A whole move in the order of OWNERSHIP; with `giveUp` it ends after the device state left. */
  async move(options: {
    source: Vmm; target: Vmm; memoryBytes: number; giveUp?: boolean; postCopy?: boolean;
    bandwidth?: number; downtimeBudgetMs?: number;
  }): Promise<MoveFigures> {
    const began = performance.now();
    const postCopy = options.postCopy ?? false;
    const tried = this.sessions({
      ...options, postCopy, bandwidth: options.bandwidth ?? 0,
      downtimeBudgetMs: options.downtimeBudgetMs ?? 100,
    });
    const { source: vmm, target: incoming } = options;
    await incoming.run('migrate-incoming', { uri: `unix:${tried.incomingSocket}` });
    await tried.source.connect();
    const connected = performance.now();
    tried.source.startPreCopy();
    const decision = await tried.source.waitConverged();
    const converged = performance.now();
    const mode = decision.decision === 'post-copy' ? 'post-copy' as const : 'pre-copy' as const;
    const [from, fromTarget] = [vmm.events.length, incoming.events.length];
    await vmm.run('stop');
    const stopStamp = await vmm.seen('STOP', { from });
    const stopped = performance.now();
    const finishing = tried.source.finishMemory({ mode });
    const migrating = vmm.run('migrate', { uri: `unix:${tried.deviceSocket}` });
    const record = await tried.target.waitMemoryIn();
    const memoryIn = performance.now();
    const finished = await finishing;
    await migrating;
    await incoming.seen('MIGRATION', { from: fromTarget, status: 'completed' });
    const loaded = performance.now();
    if (options.giveUp === true) {
      await vmm.seen('MIGRATION', { from, status: 'completed' });
      await tried.source.abort();
      await tried.target.close();
      incoming.kill();
      await vmm.run('cont');
    } else {
      await incoming.run('cont');
    }
    const resumed = options.giveUp === true ? stopStamp : await incoming.seen('RESUME', { from: fromTarget });
    if (mode === 'post-copy') {
      const served = tried.source.servePostCopy();
      const whole = await tried.target.waitWhole();
      if ((await served).digest !== whole.digest) throw new Error('digests differ after post-copy');
    }
    const ended = performance.now();
    const snapshot = tried.source.snapshot();
    await tried.source.close();
    await tried.target.close();
    return {
      decision, finished, record, snapshot,
      totalMs: ended - began, preCopyMs: converged - connected, downtimeMs: resumed - stopStamp,
      parts: {
        connectMs: connected - began, stopMs: stopped - converged, memoryInMs: memoryIn - stopped,
        deviceMs: loaded - memoryIn, endMs: ended - loaded,
      },
    };
  }

  async close(): Promise<void> {
    this.#vmms.forEach((vmm) => vmm.kill());
    await this.#listener?.close();
    // Killed VMMs may hold their files a moment longer.
    if (this.#huge !== null) execFileSync('umount', ['-l', this.dir]);
    rmSync(this.dir, { recursive: true, force: true });
  }
}
