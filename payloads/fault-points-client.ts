/**
 * Arms fault points of one process over its socket, with a certificate of role `lab`. One point a
 * connection; closing it lets go of whoever waits there.
 */
import { connect } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import { CodedError } from '../contracts/failures.ts';
import { faultNotice } from '../contracts/fault-points.ts';
import type { FaultNotice, FaultPoint, FaultRequest } from '../contracts/fault-points.ts';
import { encodeFrame, FrameDecoder } from './json-frames.ts';
import type { RevocationList } from './revocation.ts';
import { clientTlsOptions, handshakeTimeoutMs, linkFailure } from './tls.ts';
import type { TlsMaterial } from './tls.ts';

/** Which point of which process, for which VM. */
export interface FaultPlace {
  readonly socketPath: string;
  readonly point: FaultPoint;
  readonly vm: string;
  readonly material: TlsMaterial;
  readonly revoked: RevocationList;
}

/** An armed point. */
export interface ArmedPoint {
  /** Resolves when somebody stands there; false when the process is gone or let go before. */
  readonly reached: Promise<boolean>;
  /** Lets go of whoever stands there. Idempotent; also right when the process is gone. */
  release(): void;
}

const refusedText = 'the process refused: it takes a certificate of role lab, in the lab profile';

/** Arms a point. Failures: link/refused (no lab certificate), host/unreachable. */
export async function armFaultPoint(place: FaultPlace): Promise<ArmedPoint> {
  const { socketPath, point, vm, material, revoked } = place;
  const seen = {
    armed: Promise.withResolvers<boolean>(), reached: Promise.withResolvers<boolean>(),
  };
  const socket: TLSSocket = connect({
    path: socketPath,
    ...clientTlsOptions({ material, revoked, expected: [{ role: 'host' }, { role: 'control' }] }),
  });
  const request = (op: FaultRequest['op']): void => {
    const words: FaultRequest = { version: 1, op, point, vm };
    if (!socket.destroyed) socket.write(encodeFrame(words));
  };
  const decoder = new FrameDecoder();
  const onNotice = ({ kind }: FaultNotice): void => {
    if (kind === 'armed') seen.armed.resolve(true);
    if (kind === 'reached') seen.reached.resolve(true);
  };
  socket.on('data', (chunk: Buffer) => {
    for (const frame of decoder.push(chunk)) onNotice(faultNotice.parse(frame));
  });
  socket.once('secureConnect', () => request('arm'));
  socket.on('error', (error) => seen.armed.reject(linkFailure(error, socketPath)));
  socket.once('close', () => {
    seen.armed.resolve(false);
    seen.reached.resolve(false);
  });
  const timer = setTimeout(() => socket.destroy(new CodedError('host/unreachable',
    `${socketPath} did not answer in ${handshakeTimeoutMs} ms`)), handshakeTimeoutMs);
  try {
    if (!await seen.armed.promise) throw new CodedError('link/refused', refusedText);
  } finally {
    clearTimeout(timer);
  }
  return {
    reached: seen.reached.promise,
    release: () => {
      request('release');
      socket.end();
    },
  };
}
