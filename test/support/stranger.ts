/**
 * A stranger on the network, run as a process inside a network namespace: knocks on doors with what
 * does not belong there and tells how each took it. Input: one JSON argument; output: JSON lines.
 */
import { readFileSync } from 'node:fs';
import { connect as connectPlain } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';

/** Where to knock: an address, or a socket file. */
export type Door =
  | { readonly name: string; readonly address: string; readonly port: number }
  | { readonly name: string; readonly path: string };
/** With what. */
export type Knock =
  | { readonly kind: 'bytes' | 'http'; readonly hex: string }
  | { readonly kind: 'tls'; readonly hex: string; readonly papers: Papers | null };
interface Papers {
  readonly certPath: string;
  readonly keyPath: string;
}
export interface StrangerOrder {
  /** User and group to knock as; absent: root. */
  readonly uid?: number;
  readonly doors: readonly Door[];
  readonly knocks: readonly Knock[];
}
/** How a door took it. */
export interface Answer {
  readonly door: string;
  readonly kind: string;
  /** Bytes of the application, after TLS where there was any. */
  readonly received: number;
  readonly text: string;
  readonly end: 'closed' | 'refused' | 'open';
}

/** A door that has not closed by then is counted as open, ms. */
const patienceMs = 4_000;

function open(door: Door, knock: Knock): Socket {
  const where = 'path' in door ? { path: door.path } : { host: door.address, port: door.port };
  if (knock.kind !== 'tls') return connectPlain(where);
  const papers = knock.papers === null ? {} : {
    cert: readFileSync(knock.papers.certPath), key: readFileSync(knock.papers.keyPath),
  };
  return connectTls({ ...where, ...papers, rejectUnauthorized: false, minVersion: 'TLSv1.2' });
}

async function knockOn(door: Door, knock: Knock): Promise<Answer> {
  const chunks: Buffer[] = [];
  const socket = open(door, knock);
  const said = knock.kind === 'http' ? Buffer.from('GET / HTTP/1.1\r\nHost: novacron\r\n\r\n')
    : Buffer.from(knock.hex, 'hex');
  const end = await new Promise<Answer['end']>((resolve) => {
    const timer = setTimeout(() => resolve('open'), patienceMs);
    const finish = (how: Answer['end']) => (): void => {
      clearTimeout(timer);
      resolve(how);
    };
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.on('error', finish('refused'));
    socket.on('close', finish('closed'));
    socket.once(knock.kind === 'tls' ? 'secureConnect' : 'connect', () => socket.write(said));
  });
  socket.destroy();
  const all = Buffer.concat(chunks);
  return {
    door: door.name, kind: knock.kind, received: all.length,
    text: all.subarray(0, 200).toString('latin1'), end,
  };
}

if (import.meta.main) {
  const { doors, knocks, uid } = JSON.parse(process.argv[2] ?? '') as StrangerOrder;
  if (uid !== undefined) {
    process.setgroups?.([]);
    process.setgid?.(uid);
    process.setuid?.(uid);
  }
  const answers = await Promise.all(doors.flatMap((door) => knocks.map((knock) =>
    knockOn(door, knock))));
  for (const answer of answers) process.stdout.write(`${JSON.stringify(answer)}\n`);
}
