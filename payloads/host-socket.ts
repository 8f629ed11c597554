/**
 * The local socket of a host's runner: its protocol and its client, for `novacron-host` and for
 * `novacron vm console` on that host. It works with Temporal away. The server is in runners/host.
 *
 * One request a connection, JSON lines: the request, then one answer. `console` goes on after its
 * answer with the raw bytes of the VM's serial console both ways until either side ends.
 */
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { z } from 'zod';
import { CodedError, isFailureCode } from '../contracts/failures.ts';
import { isVmName } from '../contracts/identity.ts';
import type { VmName } from '../contracts/identity.ts';

/** A request is a name and an operation; an answer lists the VMs of one host. */
export const localLineBytesMax = 256 * 1024;
/** Stop may wait for the guest's shutdown; everything else answers at once. */
const answerTimeoutMs = 5_000;
const stopTimeoutMs = 10 * 60_000;

const vm = z.string().refine(
  isVmName, "1 to 40 of a-z, 0-9 and '-', starting with a letter");
/** What may be asked. */
export const localRequest = z.discriminatedUnion('op', [
  z.strictObject({ version: z.literal(1), op: z.literal('list') }),
  z.strictObject({ version: z.literal(1), op: z.literal('status') }),
  z.strictObject({ version: z.literal(1), op: z.literal('console'), vm }),
  z.strictObject({
    version: z.literal(1), op: z.literal('stop'), vm,
    /** How long the guest may take to shut down before its VMM is ended, ms; 0 ends it at once. */
    graceMs: z.int().min(0).max(stopTimeoutMs),
  }),
]);
export type LocalRequest = z.infer<typeof localRequest>;

/** One VM as its host sees it. */
export const localVm = z.strictObject({
  name: z.string(),
  runState: z.enum(['absent', 'starting', 'incoming', 'running', 'paused', 'stopped', 'failed']),
  vmmPid: z.int().nullable(),
  incarnation: z.string().nullable(),
  memoryBytes: z.int(),
  vcpuCount: z.int(),
});
export type LocalVm = z.infer<typeof localVm>;

/** The runner as it sees itself. */
export const localStatus = z.strictObject({
  host: z.string(),
  pid: z.int(),
  startedAtMs: z.number(),
  /** Named checks, 'ok' or what is wrong: temporal, ledger, …. */
  checks: z.record(z.string(), z.string()),
  openMigrations: z.array(z.string()),
});
export type LocalStatus = z.infer<typeof localStatus>;

const failureAnswer = z.strictObject({
  version: z.literal(1), ok: z.literal(false),
  failure: z.looseObject({ code: z.string().refine(isFailureCode), detail: z.string() }),
});
const answerOf = {
  list: z.strictObject({ version: z.literal(1), ok: z.literal(true), vms: z.array(localVm) }),
  status: z.strictObject({ version: z.literal(1), ok: z.literal(true), status: localStatus }),
  stop: z.strictObject({ version: z.literal(1), ok: z.literal(true),
    runState: localVm.shape.runState }),
  console: z.strictObject({ version: z.literal(1), ok: z.literal(true) }),
} as const;
export type LocalAnswer<Op extends LocalRequest['op']> = z.infer<(typeof answerOf)[Op]>;

function refusalOfSocket(error: NodeJS.ErrnoException, socketPath: string): CodedError {
  const why = error.code === 'ENOENT' ? 'no runner has made it: is this the host, is the runner up?'
    : error.code === 'ECONNREFUSED' ? 'the runner that made it is gone'
      : error.code === 'EACCES' ? 'only the user of the runner and root may use it'
        : error.message;
  return new CodedError('host/unreachable', `${socketPath}: ${why}`, error);
}

/**
 * Connects, sends the request, resolves with the socket and the first line and what followed it.
 */
async function firstLine(
  { socketPath, request, timeoutMs }:
    { socketPath: string; request: LocalRequest; timeoutMs: number },
): Promise<{ socket: Socket; line: string; rest: Buffer }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ line: string; rest: Buffer }>();
  const socket = connect(socketPath);
  let received = Buffer.alloc(0);
  const onData = (chunk: Buffer): void => {
    received = Buffer.concat([received, chunk]);
    const end = received.indexOf(0x0a);
    if (end >= 0) {
      socket.off('data', onData);
      socket.pause();
      resolve({ line: received.toString('utf8', 0, end), rest: received.subarray(end + 1) });
    } else if (received.length > localLineBytesMax) {
      reject(new CodedError('internal', `${socketPath}: answer longer than ${localLineBytesMax}`));
    }
  };
  const timer = setTimeout(() => reject(new CodedError('host/unreachable',
    `${socketPath}: no answer in ${timeoutMs} ms`)), timeoutMs);
  socket.on('error', (error) => reject(refusalOfSocket(error, socketPath)));
  socket.once('close', () => reject(new CodedError('host/unreachable',
    `${socketPath}: closed without an answer`)));
  socket.on('data', onData);
  socket.write(`${JSON.stringify(request)}\n`);
  try {
    return { socket, ...await promise };
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

function readAnswer<Op extends LocalRequest['op']>(op: Op, line: string): LocalAnswer<Op> {
  const value: unknown = JSON.parse(line);
  const refused = failureAnswer.safeParse(value);
  if (refused.success) {
    throw new CodedError(refused.data.failure.code, refused.data.failure.detail);
  }
  return answerOf[op].parse(value) as LocalAnswer<Op>;
}

/** Asks the runner on this host. Failures: `host/unreachable`, and those of the operation. */
export async function askHost<Op extends 'list' | 'status' | 'stop'>(
  { socketPath, request }: {
    readonly socketPath: string; readonly request: LocalRequest & { readonly op: Op };
  },
): Promise<LocalAnswer<Op>> {
  const timeoutMs = request.op === 'stop' ? stopTimeoutMs : answerTimeoutMs;
  const { socket, line } = await firstLine({ socketPath, request, timeoutMs });
  socket.destroy();
  return readAnswer(request.op as Op, line);
}

/** Ctrl-] as in telnet: leaves the console, the VM goes on. */
export const consoleEscapeByte = 0x1d;

/**
 * Joins a VM's serial console with two streams until the escape byte, the end of the input, or the
 * VM's side ends. The caller sets its terminal to raw mode. Answers why it ended.
 */
export async function attachConsole({ socketPath, vmName, input, output }: {
  readonly socketPath: string; readonly vmName: VmName;
  readonly input: NodeJS.ReadableStream; readonly output: NodeJS.WritableStream;
}): Promise<'escape' | 'vm-ended' | 'input-ended'> {
  const request: LocalRequest = { version: 1, op: 'console', vm: vmName };
  const { socket, line, rest } = await firstLine({ socketPath, request,
    timeoutMs: answerTimeoutMs });
  readAnswer('console', line);
  const { promise, resolve } = Promise.withResolvers<'escape' | 'vm-ended' | 'input-ended'>();
  const onInput = (chunk: Buffer | string): void => {
    const data = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
    const escape = data.indexOf(consoleEscapeByte);
    socket.write(escape < 0 ? data : data.subarray(0, escape));
    if (escape >= 0) resolve('escape');
  };
  output.write(rest);
  socket.on('data', (chunk: Buffer) => output.write(chunk));
  socket.once('close', () => resolve('vm-ended'));
  socket.resume();
  input.on('data', onInput);
  input.once('end', () => resolve('input-ended'));
  try {
    return await promise;
  } finally {
    input.off('data', onInput);
    socket.destroy();
  }
}
