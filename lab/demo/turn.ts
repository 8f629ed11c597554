/**
 * One demo at a time on a machine: who holds the turn, and how it is ended. The turn is a name in
 * the kernel's abstract socket space, which goes with the process that holds it, however it ends.
 */
import { connect, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import { endProcesses } from '../processes.ts';
import { markOf, processMark } from '../state.ts';

/** The holder answers in a millisecond; one that stands still (SIGSTOP) does not. */
const answerMsMax = 2_000;
/** A demo that is told to end takes its half-made lab down first. */
const endMsMax = 30_000;
const retryEveryMs = 50;
/** An answer is a process and a path. */
const answerLengthMax = 8_192;

const holderShape = z.strictObject({ process: processMark, project: z.string() });
/** The demo that has the turn. */
export type TurnHolder = z.infer<typeof holderShape>;

/** A turn that was taken; ends with `leave` or with the process. */
export interface Turn {
  leave(): void;
}

const socketName = (demo: string): string => `\0novacron-${demo}`;

/** Takes the turn when nobody has it. */
function tryTurn(demo: string, project: string): Promise<Turn | null> {
  const holder: TurnHolder = { process: markOf('demo', process.pid), project };
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end(JSON.stringify(holder));
  });
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(null);
      else reject(error);
    });
    server.listen({ path: socketName(demo) }, () => {
      server.unref();
      resolve({ leave: () => { server.close(); } });
    });
  });
}

/** Who has the turn; null when nobody answers. */
export function turnHolder(demo: string): Promise<TurnHolder | null> {
  const socket = connect({ path: socketName(demo), timeout: answerMsMax });
  let text = '';
  return new Promise((resolve) => {
    socket.setEncoding('utf8').on('data', (part: string) => {
      text += part;
      if (text.length > answerLengthMax) socket.destroy();
    });
    socket.once('timeout', () => socket.destroy());
    socket.on('error', () => undefined);
    socket.once('close', () => {
      try {
        resolve(holderShape.parse(JSON.parse(text)));
      } catch {
        resolve(null);
      }
    });
  });
}

/** Takes the turn or says who has it. Failure: input/invalid. */
export async function takeTurn(demo: string, project: string): Promise<Turn> {
  const turn = await tryTurn(demo, project);
  if (turn !== null) return turn;
  const holder = await turnHolder(demo);
  const who = holder === null ? 'it does not answer'
    : `process ${holder.process.pid}, of ${holder.project}`;
  throw new CodedError('input/invalid', `a demo is running on this machine (${who}): wait for its `
    + 'end, or end it and its lab with `npm run demo -- --down`');
}

/** Ends the demo that has the turn, if one does, and takes it over. */
export async function seizeTurn(demo: string, project: string): Promise<Turn> {
  for (const end = performance.now() + endMsMax; performance.now() < end;) {
    const turn = await tryTurn(demo, project);
    if (turn !== null) return turn;
    const holder = await turnHolder(demo);
    if (holder !== null) await endProcesses([holder.process], endMsMax);
    else await sleep(retryEveryMs);
  }
  throw new CodedError('input/invalid', 'a demo is running and does not answer: end its process '
    + '(lab/demo/main.ts) and run this again');
}
