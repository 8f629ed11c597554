/**
 * A host's words to the gate in front of a shared volume (native/volume/src/words.rs): raise it, or
 * look where it stands. Which epoch is right is the ledger's; NBD goes another way, by links.
 */
import { CodedError } from '../../contracts/failures.ts';
import type { VmName } from '../../contracts/identity.ts';
import type { SharedVolume } from '../../contracts/runner.ts';
import type { RevocationList } from '../../payloads/revocation.ts';
import { connectTls, type TlsMaterial } from '../../payloads/tls.ts';

const laneProtocol = 'novacron-lane/1';
/** First byte of the answer: certificate and hello were taken. */
const helloTaken = 1;
const connectMsMax = 3_000;
/** The gate itself waits 8 s for writes that are in flight. */
const answerMsMax = 10_000;
const answerBytesMax = 1024;

export interface VolumeQuestion {
  readonly wish: 'raise' | 'look';
  readonly vm: VmName;
  readonly volume: SharedVolume;
  /** 0 for a look. */
  readonly epoch: number;
}

export interface VolumePapers {
  readonly material: TlsMaterial;
  readonly revoked: RevocationList;
}

/**
 * Asks once; answers the gate's epoch. After a raise no write of a lower epoch reaches the volume
 * any more. Failures: ownership/refused (the gate is higher, or does not serve this VM),
 * preflight/volume (nobody answers, or not now).
 */
export async function askVolumeGate(
  { wish, vm, volume, epoch }: VolumeQuestion, { material, revoked }: VolumePapers,
): Promise<number> {
  const { server } = volume;
  const where = `${volume.name} at ${server.name}`;
  const line = await exchange(
    `novacron-volume/1 ${wish} ${vm} ${volume.name} ${epoch}`,
    () => connectTls({
      host: server.address, port: server.port, material, revoked, protocol: laneProtocol,
      expected: [{ role: 'volume', name: server.name }], timeoutMs: connectMsMax,
    }),
  ).catch((error: unknown): never => {
    const { message } = error as Error;
    throw new CodedError('preflight/volume', `${where}: ${message}`, error);
  });
  const [kind, gate, ...why] = line.split(' ');
  if (kind === 'ok') return Number(gate);
  const detail = `${where}: ${why.join(' ')}`;
  throw new CodedError(kind === 'refused' ? 'ownership/refused' : 'preflight/volume', detail);
}

/** Raises of one host; answers when no lower write can reach the volume. Failures as above. */
export const volumeRaiser = (papers: VolumePapers) =>
  (vm: VmName, volume: SharedVolume, epoch: number): Promise<number> =>
    askVolumeGate({ wish: 'raise', vm, volume, epoch }, papers);

async function exchange(
  text: string, connect: () => ReturnType<typeof connectTls>,
): Promise<string> {
  const socket = await connect();
  const timer = setTimeout(() => socket.destroy(new Error('no answer in time')), answerMsMax);
  try {
    const hello = Buffer.from(text);
    const length = Buffer.alloc(2);
    length.writeUInt16BE(hello.length);
    socket.write(Buffer.concat([length, hello]));
    let heard = Buffer.alloc(0);
    for await (const piece of socket) {
      heard = Buffer.concat([heard, piece as Buffer]);
      const end = heard.indexOf('\n');
      if (end > 0 && heard[0] === helloTaken) return heard.toString('utf8', 1, end);
      if (heard.length > answerBytesMax) break;
    }
    throw new Error('it ended without an answer');
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}
