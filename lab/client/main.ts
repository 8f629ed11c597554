/**
 * The outside client of a lab: lives in a namespace of its own on the VM segment. It writes to
 * Redis, asks the guest for an echo every few ms, and speaks to the witness. Commands come as JSON
 * lines on standard input, one answer line each: mark, report, read-back, read-back-anew, witness,
 * probe (a new connection: does anything answer?), fill, end.
 *
 * Two gaps are kept apart. `echo`: time between consecutive ICMP echoes, each sent on its own, so
 * that no transport's retransmission timer is in the figure. `redis`: time between consecutive
 * acknowledged writes on one TCP connection, with whatever TCP adds.
 */
import { randomBytes } from 'node:crypto';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { raiseThisProcess } from '../../runners/cpu-priority.ts';
import { GapMeter, nowMs } from './gaps.ts';
import { RedisWriter } from './redis-writer.ts';
import { WitnessLine } from './witness-line.ts';
import type { WitnessRequest } from './witness-line.ts';

interface ClientSettings {
  readonly address: string;
  readonly redisPort: number;
  readonly witnessPort: number;
  readonly writeEveryMs: number;
  readonly echoEveryMs: number;
  /** How long to try until the guest answers. */
  readonly waitMs: number;
}

function readSettings(): ClientSettings {
  const { values } = parseArgs({
    options: {
      address: { type: 'string' },
      'redis-port': { type: 'string', default: '6379' },
      'witness-port': { type: 'string', default: '7070' },
      'write-every-ms': { type: 'string', default: '5' },
      'echo-every-ms': { type: 'string', default: '2' },
      'wait-ms': { type: 'string', default: '0' },
    },
  });
  if (values.address === undefined) throw new TypeError('--address is missing');
  return {
    address: values.address,
    redisPort: Number(values['redis-port']),
    witnessPort: Number(values['witness-port']),
    writeEveryMs: Number(values['write-every-ms']),
    echoEveryMs: Number(values['echo-every-ms']),
    waitMs: Number(values['wait-ms']),
  };
}

/** Echo requests by busybox's ping, a line an answer; ends with us. */
function startEcho(settings: ClientSettings, meter: GapMeter): () => void {
  const child = spawn(
    'busybox', ['ping', '-i', String(settings.echoEveryMs / 1000), settings.address],
    { stdio: ['ignore', 'pipe', 'ignore'] });
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (line.includes(' seq=')) meter.tick(nowMs());
  });
  child.on('error', () => undefined);
  return () => child.kill('SIGKILL');
}

interface Command {
  readonly id: number;
  readonly op: string;
  readonly request?: WitnessRequest;
  readonly bytes?: number;
}

interface Guest {
  readonly writer: RedisWriter;
  readonly witness: WitnessLine;
}

const say = (line: object): void => {
  process.stdout.write(`${JSON.stringify(line)}\n`);
};

async function connectGuest(settings: ClientSettings, meter: GapMeter): Promise<Guest> {
  const { address } = settings;
  const writer = new RedisWriter({
    address, port: settings.redisPort, prefix: `w${randomBytes(3).toString('hex')}`, meter,
  });
  try {
    await writer.connect();
    return { writer, witness: await WitnessLine.open({ address, port: settings.witnessPort }) };
  } catch (error) {
    writer.close();
    throw error;
  }
}

/** A guest that does not answer a new connection in so long is asked again. */
const probeMsMax = 1_000;

/** Status of the guest over a connection of its own; null when nothing answers. */
async function probe({ address, witnessPort: port }: ClientSettings): Promise<object> {
  let line: WitnessLine | null = null;
  try {
    line = await WitnessLine.open({ address, port, connectMsMax: probeMsMax });
    return { status: await line.ask({ op: 'status' }, probeMsMax) };
  } catch {
    return { status: null };
  } finally {
    line?.close();
  }
}

/** Tries until a booting guest answers; afterwards no connection is ever made again. */
async function meetGuest(settings: ClientSettings, meter: GapMeter): Promise<Guest> {
  for (const end = performance.now() + settings.waitMs; ;) {
    try {
      return await connectGuest(settings, meter);
    } catch (error) {
      if (performance.now() > end) throw error;
      await sleep(200);
    }
  }
}

async function run(settings: ClientSettings): Promise<void> {
  const echo = new GapMeter();
  const redis = new GapMeter();
  const { writer, witness } = await meetGuest(settings, redis);
  const stopEcho = startEcho(settings, echo);
  const report = (): object => {
    const now = nowMs();
    return {
      echo: echo.report(now), redis: redis.report(now),
      ackedWrites: writer.ackedWrites, connectionLost: writer.connectionLost,
    };
  };
  const answer = async (command: Command): Promise<object> => {
    switch (command.op) {
      case 'start': writer.start(settings.writeEveryMs); return {};
      case 'stop': await writer.stop(); return {};
      case 'mark': echo.mark(); redis.mark(); return {};
      case 'report': return report();
      case 'read-back-anew': return await writer.readBackAnew();
      case 'probe': return await probe(settings);
      case 'read-back': return await writer.readBack();
      case 'fill': await writer.fill(command.bytes ?? 0, randomBytes); return {};
      case 'witness': return { status: await witness.ask(command.request ?? { op: 'status' }) };
      default: throw new TypeError(`no command ${command.op}`);
    }
  };
  say({ msg: 'ready' });
  const lines = createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    const command = JSON.parse(line) as Command;
    answer(command).then(
      (result) => say({ id: command.id, ...result }),
      (error: unknown) => say({ id: command.id, error: (error as Error).message }));
  });
  // Whoever started us holds our standard input: when it ends, so do we.
  await new Promise((resolve) => lines.once('close', resolve));
  stopEcho();
  writer.close();
  witness.close();
}

// The client's own lateness would count as the guest's: it goes before the load. Where that is not
// allowed, the resting gap shows what it costs.
await raiseThisProcess({ session: true });
try {
  await run(readSettings());
} catch (error) {
  say({ msg: 'failed', error: (error as Error).message });
  process.exitCode = 1;
}
