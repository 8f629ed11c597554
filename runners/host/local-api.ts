/**
 * The runner's local socket: what an operator can see and do on this host while Temporal and the
 * ledger are away. It reads requests, hands them to `LocalHostOperations` and writes answers; what
 * an operation may do (a stop still obeys the ownership rules) is decided there.
 * Protocol and limits: payloads/host-socket.ts. Access: mode 0600, the runner's user and root.
 */
import { chmod, mkdir } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { dirname } from 'node:path';
import type { Duplex } from 'node:stream';
import type { Logger } from 'pino';
import { z } from 'zod';
import { CodedError, failureReport, readFailure } from '../../contracts/failures.ts';
import { vmName } from '../../contracts/identity.ts';
import type { VmName } from '../../contracts/identity.ts';
import type { VmRunState } from '../../contracts/runner.ts';
import { localLineBytesMax, localRequest } from '../../payloads/host-socket.ts';
import type { LocalRequest, LocalStatus, LocalVm } from '../../payloads/host-socket.ts';
import { listenPrivately } from '../private-socket.ts';

/** One person at a keyboard and a few scripts. */
const connectionCountMax = 16;
/** A peer that connects and says nothing is let go. */
const requestTimeoutMs = 5_000;

/** What the socket offers; wired by the runner. */
export interface LocalHostOperations {
  listVms(): Promise<readonly LocalVm[]>;
  status(): Promise<LocalStatus>;
  /**
   * Power button, then after `graceMs` the end of the VMM. Failures: vm/unknown, migration/open.
   * Works without the ledger: it only ever stops.
   */
  stopVm(input: { readonly vm: VmName; readonly graceMs: number }): Promise<VmRunState>;
  /** Opens the VM's serial console. Failures: vm/unknown, vm/not-running. */
  openConsole(input: { readonly vm: VmName }): Promise<Duplex>;
}

export interface LocalApi {
  readonly socketPath: string;
  close(): Promise<void>;
}

/** True while some process answers on the socket. */
async function isAlive(socketPath: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const probe = connect(socketPath);
  probe.once('connect', () => resolve(true));
  probe.once('error', () => resolve(false));
  const alive = await promise;
  probe.destroy();
  return alive;
}

const send = (socket: Socket, answer: object): void => {
  socket.end(`${JSON.stringify({ version: 1, ...answer })}\n`);
};

async function perform(
  { socket, request, operations }:
    { socket: Socket; request: LocalRequest; operations: LocalHostOperations },
): Promise<void> {
  switch (request.op) {
    case 'list': return send(socket, { ok: true, vms: await operations.listVms() });
    case 'status': return send(socket, { ok: true, status: await operations.status() });
    case 'stop': {
      const { graceMs } = request;
      const runState = await operations.stopVm({ vm: vmName(request.vm), graceMs });
      return send(socket, { ok: true, runState });
    }
    case 'console': {
      const console = await operations.openConsole({ vm: vmName(request.vm) });
      socket.write(`${JSON.stringify({ version: 1, ok: true })}\n`);
      socket.setTimeout(0);
      console.once('error', () => socket.destroy());
      console.once('close', () => socket.end());
      socket.once('close', () => console.destroy());
      socket.pipe(console);
      console.pipe(socket);
      socket.resume();
    }
  }
}

function refuse(socket: Socket, error: unknown, logger: Logger): void {
  const known = readFailure(error);
  if (known === null) logger.error({ err: error }, 'local request failed');
  const failure = known ?? failureReport('internal', 'see the log of the runner');
  send(socket, { ok: false, failure });
}

function serve(
  { socket, operations, logger }:
    { socket: Socket; operations: LocalHostOperations; logger: Logger },
): void {
  let received = Buffer.alloc(0);
  socket.setTimeout(requestTimeoutMs, () => socket.destroy());
  socket.on('error', () => socket.destroy());
  const onData = (chunk: Buffer): void => {
    received = Buffer.concat([received, chunk]);
    const end = received.indexOf(0x0a);
    if (end < 0) {
      if (received.length > localLineBytesMax) socket.destroy();
      return;
    }
    socket.off('data', onData);
    socket.pause();
    socket.setTimeout(0);
    // What a client typed ahead of the answer belongs to the console.
    if (received.length > end + 1) socket.unshift(received.subarray(end + 1));
    try {
      const parsed = localRequest.safeParse(JSON.parse(received.toString('utf8', 0, end)));
      if (!parsed.success) throw new CodedError('input/invalid', z.prettifyError(parsed.error));
      logger.info({ op: parsed.data.op, vm: 'vm' in parsed.data ? parsed.data.vm : null },
        'local request');
      perform({ socket, request: parsed.data, operations })
        .catch((error: unknown) => refuse(socket, error, logger));
    } catch (error) {
      refuse(socket, error instanceof SyntaxError
        ? new CodedError('input/invalid', 'the request is not a line of JSON') : error, logger);
    }
  };
  socket.on('data', onData);
}

/**
 * Opens the socket, 0600. A stale one of a dead runner is replaced; a live one is `internal`: two
 * runners on one runtime directory would fight over the same VMs.
 */
export async function serveLocalApi({ socketPath, operations, logger }: {
  readonly socketPath: string; readonly operations: LocalHostOperations; readonly logger: Logger;
}): Promise<LocalApi> {
  await mkdir(dirname(socketPath), { recursive: true, mode: 0o755 });
  if (await isAlive(socketPath)) {
    throw new CodedError('internal', `${socketPath}: another runner answers there`);
  }
  const server = createServer((socket) => serve({ socket, operations, logger }));
  const { close } = await listenPrivately(server, { socketPath, connectionCountMax });
  await chmod(socketPath, 0o600);
  return { socketPath, close };
}
