/**
 * A VMM of the mind: speaks QMP on a unix socket and behaves like QEMU where this project looks,
 * i.e. run states, events, migration of device state and mirror jobs. It runs no guest. Tests that
 * need no real VMM use it; it passes the conformance suite that the real ones pass.
 */
import { rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { LineReader } from './line-reader.ts';

type Arguments = Readonly<Record<string, unknown>>;
type RunState = 'prelaunch' | 'running' | 'paused' | 'inmigrate' | 'postmigrate';

/** What a fake is told. */
export interface FakeVmmOptions {
  readonly socketPath: string;
  readonly version?: readonly [number, number, number];
  readonly incoming?: boolean;
  /** Names of block nodes and their virtual sizes. */
  readonly disks?: Readonly<Record<string, number>>;
}

/** Device state on the fake's wire; it means nothing. */
const deviceState = Buffer.from('QEVM-of-the-mind\n');

class Refusal extends Error {
  readonly errorClass: string;
  constructor(errorClass: string, description: string) {
    super(description);
    this.errorClass = errorClass;
  }
}
const refuse = (description: string): never => {
  throw new Refusal('GenericError', description);
};

interface Job {
  readonly id: string;
  readonly target: string;
  readonly bytes: number;
  ready: boolean;
  mode: unknown;
}

/** A fake VMM; `close` is its death. */
export class FakeVmm {
  readonly #options: FakeVmmOptions;
  readonly #version: readonly [number, number, number];
  readonly #server: Server;
  readonly #clients = new Set<Socket>();
  readonly #nodes = new Map<string, number>();
  readonly #exports = new Set<string>();
  readonly #jobs = new Map<string, Job>();
  readonly #capabilities = new Map<string, boolean>();
  #incoming: Server | null = null;
  #migration: string | null = null;
  #bytesSent = 0;
  #state: RunState;
  #stalled: (() => void)[] | null = null;

  private constructor(options: FakeVmmOptions) {
    this.#options = options;
    this.#version = options.version ?? [7, 2, 22];
    this.#state = options.incoming === true ? 'inmigrate' : 'prelaunch';
    for (const [name, size] of Object.entries(options.disks ?? {})) this.#nodes.set(name, size);
    this.#server = createServer((socket) => this.#serve(socket));
  }

  static async start(options: FakeVmmOptions): Promise<FakeVmm> {
    const fake = new FakeVmm(options);
    await new Promise<void>((resolve, reject) => {
      fake.#server.once('error', reject);
      fake.#server.listen(options.socketPath, resolve);
    });
    return fake;
  }

  /** QEMU's word for its run state. */
  get state(): RunState {
    return this.#state;
  }

  /** Sends raw bytes to all clients, for tests of what a broken VMM may say. */
  sendRaw(bytes: Buffer | string): void {
    for (const client of this.#clients) client.write(bytes);
  }

  /** From now on nothing is answered, as when the process is stopped. */
  stall(): void {
    this.#stalled ??= [];
  }

  /** Answers what has waited, in order. */
  resume(): void {
    const waiting = this.#stalled ?? [];
    this.#stalled = null;
    for (const answer of waiting) answer();
  }

  /** The process dies: sockets close in the middle of whatever was going on. */
  close(): void {
    for (const client of this.#clients) client.destroy();
    this.#server.close();
    this.#incoming?.close();
    rmSync(this.#options.socketPath, { force: true });
  }

  #serve(socket: Socket): void {
    this.#clients.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => this.#clients.delete(socket));
    const [major, minor, micro] = this.#version;
    write(socket, {
      QMP: { version: { qemu: { micro, minor, major }, package: '' }, capabilities: ['oob'] },
    });
    const reader = new LineReader((line) => {
      const answer = (): void => this.#answer(socket, line);
      if (this.#stalled === null) answer();
      else this.#stalled.push(answer);
    });
    socket.on('data', (chunk) => {
      if (!reader.push(chunk)) socket.destroy();
    });
  }

  #answer(socket: Socket, line: string): void {
    let request: { execute?: unknown; 'exec-oob'?: unknown; arguments?: Arguments; id?: unknown };
    try {
      request = JSON.parse(line) as typeof request;
    } catch {
      return write(socket, { error: { class: 'GenericError', desc: 'JSON parse error' } });
    }
    const id = request.id === undefined ? {} : { id: request.id };
    try {
      const value = this.#run(
        String(request.execute ?? request['exec-oob']),
        request.arguments ?? {},
      );
      write(socket, { return: value ?? {}, ...id });
    } catch (error) {
      const errorClass = error instanceof Refusal ? error.errorClass : 'GenericError';
      write(socket, { error: { class: errorClass, desc: (error as Error).message }, ...id });
    }
  }

  #event(event: string, data: Arguments = {}): void {
    const us = Math.round((performance.timeOrigin + performance.now()) * 1000);
    const timestamp = { seconds: Math.floor(us / 1e6), microseconds: us % 1e6 };
    for (const client of this.#clients) write(client, { timestamp, event, data });
  }

  #run(command: string, args: Arguments): unknown {
    const known = this.#commands[command];
    if (known === undefined) {
      throw new Refusal('CommandNotFound', `The command ${command} has not been found`);
    }
    return known(args);
  }

  readonly #commands: Readonly<Record<string, (args: Arguments) => unknown>> = {
    qmp_capabilities: () => undefined,
    'query-status': () => ({
      status: this.#state,
      running: this.#state === 'running',
      singlestep: false,
    }),
    cont: () => this.#cont(),
    stop: () => {
      if (this.#state !== 'running') return;
      this.#state = 'paused';
      this.#event('STOP');
    },
    'migrate-set-capabilities': (args) => {
      for (const { capability, state } of args['capabilities'] as {
        capability: string;
        state: boolean;
      }[]) {
        this.#capabilities.set(capability, state);
      }
    },
    'query-migrate-capabilities': () =>
      [...this.#capabilities].map(([capability, state]) => ({ capability, state })),
    'migrate-set-parameters': () => undefined,
    'migrate-incoming': (args) => this.#listen(unixPath(args)),
    migrate: (args) => this.#migrate(unixPath(args)),
    migrate_cancel: () => undefined,
    'query-migrate': () =>
      this.#migration === null
        ? {}
        : { status: this.#migration, ram: { transferred: this.#bytesSent } },
    'announce-self': () => undefined,
    'human-monitor-command': () => '',
    'nbd-server-start': () => undefined,
    'nbd-server-stop': () => undefined,
    'block-export-add': (args) => {
      if (!this.#nodes.has(String(args['node-name']))) refuse('Cannot find device nor node_name');
      this.#exports.add(String(args['id']));
    },
    'query-block-exports': () => [...this.#exports].map((id) => ({ id, 'shutting-down': false })),
    'block-export-del': (args) => {
      this.#exports.delete(String(args['id']));
      setImmediate(() => this.#event('BLOCK_EXPORT_DELETED', { id: args['id'] }));
    },
    'blockdev-add': (args) => {
      const name = String(args['node-name']);
      if (this.#nodes.has(name)) refuse(`Duplicate nodes with node-name='${name}'`);
      this.#nodes.set(name, 0);
    },
    'blockdev-del': (args) => {
      const name = String(args['node-name']);
      if ([...this.#jobs.values()].some((job) => job.target === name))
        refuse(`Node ${name} is in use`);
      if (!this.#nodes.delete(name)) refuse(`Failed to find node with node-name='${name}'`);
    },
    'blockdev-mirror': (args) => this.#mirror(args),
    yank: (args) => {
      for (const instance of args['instances'] as readonly Arguments[]) {
        if (!this.#nodes.has(String(instance['node-name']))) refuse('Instance not found');
      }
    },
    'block-job-set-speed': (args) => {
      this.#job(args['device']);
    },
    'block-job-change': (args) => {
      this.#job(args['id']).mode = args['copy-mode'];
    },
    'query-block-jobs': () =>
      [...this.#jobs.values()].map((job) => ({
        device: job.id,
        type: 'mirror',
        status: job.ready ? 'ready' : 'running',
        len: job.bytes,
        offset: job.ready ? job.bytes : 0,
        ready: job.ready,
        busy: false,
        paused: false,
        'io-status': 'ok',
        ...(this.#version[0] < 9
          ? {}
          : { 'actively-synced': job.ready && job.mode === 'write-blocking' }),
      })),
    'query-named-block-nodes': () =>
      [...this.#nodes].map(([name, size]) => ({
        'node-name': name,
        drv: 'raw',
        file: `/${name}`,
        ro: false,
        cache: { direct: false, writeback: true, 'no-flush': false },
        image: { filename: `/${name}`, 'virtual-size': size },
      })),
    'block-job-cancel': (args) => {
      const job = this.#job(args['device']);
      this.#jobs.delete(job.id);
      const name =
        args['force'] === true || !job.ready ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED';
      const data = { device: job.id, type: 'mirror', len: job.bytes, offset: job.bytes, speed: 0 };
      setImmediate(() => this.#event(name, data));
    },
  };

  #cont(): void {
    if (this.#state === 'inmigrate') refuse('The guest waits for its device state');
    if (this.#state === 'running') return;
    this.#state = 'running';
    this.#event('RESUME');
  }

  #job(id: unknown): Job {
    const job = this.#jobs.get(String(id));
    if (job === undefined)
      throw new Refusal('DeviceNotActive', `Block job '${String(id)}' not found`);
    return job;
  }

  #mirror(args: Arguments): void {
    const bytes = this.#nodes.get(String(args['device']));
    if (bytes === undefined) throw new Refusal('GenericError', 'Cannot find device nor node_name');
    const job: Job = {
      id: String(args['job-id']),
      target: String(args['target']),
      bytes,
      ready: false,
      mode: args['copy-mode'],
    };
    if (this.#jobs.has(job.id)) refuse(`Job ID '${job.id}' already in use`);
    this.#jobs.set(job.id, job);
    setImmediate(() => {
      job.ready = true;
      this.#event('BLOCK_JOB_READY', {
        device: job.id,
        type: 'mirror',
        len: bytes,
        offset: bytes,
        speed: 0,
      });
    });
  }

  #listen(path: string): void {
    if (this.#state !== 'inmigrate') refuse("'-incoming' was not specified on the command line");
    this.#incoming = createServer((socket) => {
      let text = '';
      this.#move('active');
      socket.on('data', (chunk: Buffer) => {
        text += chunk.toString('latin1');
      });
      socket.on('error', () => undefined);
      socket.on('close', () => {
        const whole = text === deviceState.toString('latin1');
        if (whole) this.#state = 'paused';
        this.#move(whole ? 'completed' : 'failed');
      });
    }).listen(path);
    this.#move('setup');
  }

  #migrate(path: string): void {
    if (this.#state === 'postmigrate')
      refuse("Can't migrate the vm that was paused due to previous migration");
    this.#move('setup');
    const socket = connect(path);
    socket.on('error', () => this.#move('failed'));
    socket.on('connect', () => {
      this.#move('active');
      socket.end(deviceState);
    });
    socket.on('finish', () => {
      this.#bytesSent = deviceState.length;
      this.#state = 'postmigrate';
      this.#move('completed');
    });
  }

  #move(status: string): void {
    this.#migration = status;
    if (this.#capabilities.get('events') === true) this.#event('MIGRATION', { status });
  }
}

const unixPath = (args: Arguments): string => String(args['uri']).replace(/^unix:/, '');

function write(socket: Socket, message: unknown): void {
  if (socket.writable) socket.write(`${JSON.stringify(message)}\r\n`);
}
