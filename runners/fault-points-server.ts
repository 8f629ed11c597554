/**
 * The way to arm fault points: mutual TLS on a unix socket, frames of JSON. Only a certificate of
 * role `lab` may speak, and only a process of the lab profile listens at all. What a connection has
 * armed goes with it: a campaign that dies leaves nobody waiting.
 */
import { createServer } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import { CodedError } from '../contracts/failures.ts';
import { faultRequest } from '../contracts/fault-points.ts';
import type { FaultNotice, FaultPoint } from '../contracts/fault-points.ts';
import { encodeFrame, FrameDecoder } from '../payloads/json-frames.ts';
import type { RevocationList } from '../payloads/revocation.ts';
import { authorizePeer, serverTlsOptions } from '../payloads/tls.ts';
import type { TlsMaterial } from '../payloads/tls.ts';
import type { FaultPoints } from './fault-points.ts';
import { listenPrivately } from './private-socket.ts';

/** A campaign, and who looks on. */
const connectionCountMax = 16;

export interface FaultServerOptions {
  readonly socketPath: string;
  readonly profile: 'lab' | 'production';
  readonly points: FaultPoints;
  readonly tls: { readonly material: TlsMaterial; readonly revoked: RevocationList };
  readonly log: Logger;
}

/** Arms and releases what one connection asks for. */
function serve(socket: TLSSocket, { points, log }: FaultServerOptions): void {
  const decoder = new FrameDecoder();
  const mine = new Map<string, () => void>();
  const say = (kind: FaultNotice['kind'], point: FaultPoint): void => {
    const notice: FaultNotice = { version: 1, kind, point };
    if (!socket.destroyed) socket.write(encodeFrame(notice));
  };
  socket.on('data', (chunk: Buffer) => {
    try {
      for (const frame of decoder.push(chunk)) {
        const { op, point, vm } = faultRequest.parse(frame);
        const release = (): void => points.release(point, vm);
        if (op === 'arm') {
          mine.set(`${point} ${vm}`, release);
          points.arm(point, vm, () => {
            log.warn({ point, vm }, 'held at a fault point');
            say('reached', point);
          });
        } else {
          mine.delete(`${point} ${vm}`);
          release();
        }
        say(op === 'arm' ? 'armed' : 'released', point);
      }
    } catch (error) {
      log.warn({ error: String(error) }, 'a request about fault points is refused');
      socket.destroy();
    }
  });
  socket.once('close', () => {
    for (const release of mine.values()) release();
  });
}

/** The same where it is configured; null elsewhere. */
export const openFaultPoints = async (
  config: { readonly faultSocket: string | null; readonly profile: FaultServerOptions['profile'];
    readonly tls: TlsMaterial },
  parts: Pick<FaultServerOptions, 'points' | 'log'> & { readonly revoked: RevocationList },
): Promise<{ close(): Promise<void> } | null> => (config.faultSocket === null ? null
  : await serveFaultPoints({
    ...parts, socketPath: config.faultSocket, profile: config.profile,
    tls: { material: config.tls, revoked: parts.revoked },
  }));

/**
 * Listens; the socket is for its owner alone. Failure: input/invalid in the production profile,
 * which has no fault points.
 */
export async function serveFaultPoints(
  options: FaultServerOptions,
): Promise<{ close(): Promise<void> }> {
  const { socketPath, profile, tls, log } = options;
  if (profile !== 'lab') {
    throw new CodedError('input/invalid', 'fault points are for the lab; remove faultSocket');
  }
  const server = createServer(serverTlsOptions(tls.material), (socket) => {
    socket.on('error', () => socket.destroy());
    try {
      authorizePeer({ socket, expected: [{ role: 'lab' }], revoked: tls.revoked });
    } catch (error) {
      log.warn({ error: String(error) }, 'fault points are armed with a lab certificate only');
      socket.destroy();
      return;
    }
    serve(socket, options);
  });
  return await listenPrivately(server, { socketPath, connectionCountMax });
}
