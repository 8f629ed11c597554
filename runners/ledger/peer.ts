/**
 * One connection to the ledger: reads requests, answers them in any order, keeps watches.
 * A peer that sends garbage loses its connection and nothing else; one that reads slowly is not
 * read from until it catches up, and its watches skip to the newest entry.
 */
import type { TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import { z } from 'zod';
import { CodedError } from '../../contracts/failures.ts';
import type { FailureCode } from '../../contracts/failures.ts';
import type { Identity, MigrationId, VmName } from '../../contracts/identity.ts';
import type { VmEntry } from '../../contracts/ownership.ts';
import { FrameDecoder, encodeFrame } from '../../payloads/json-frames.ts';
import { parseEvents } from '../group/ownership/event-schema.ts';
import { clientMessage, packedBytesMax, wireVersion } from '../../payloads/ledger-wire.ts';
import type { ClientMessage } from '../../payloads/ledger-wire.ts';
import type { LedgerCore } from './core.ts';

/** Requests of one connection in work; a move has two or three. */
const inWorkMax = 256;
/** Watches of one connection: one a VM on the largest host, with room. */
const watchCountMax = 1_024;
/** Unsent answer bytes at which nothing more is read, and watches begin to skip. */
const unsentBytesMax = 1024 * 1024;

interface Watch {
  readonly vm: VmName;
  readonly stop: () => void;
  /** An entry was skipped; the present one is due. */
  due: boolean;
}

export class LedgerPeer {
  private readonly socket: TLSSocket;
  private readonly core: LedgerCore;
  private readonly identity: Identity;
  private readonly logger: Logger;
  private readonly decoder = new FrameDecoder();
  private readonly watches = new Map<number, Watch>();
  private inWork = 0;

  constructor({ socket, core, identity, logger }: {
    readonly socket: TLSSocket; readonly core: LedgerCore; readonly identity: Identity;
    readonly logger: Logger;
  }) {
    this.socket = socket;
    this.core = core;
    this.identity = identity;
    this.logger = logger.child({ peer: `${identity.role}/${identity.name}` });
  }

  serve(): void {
    this.socket.on('data', (chunk) => this.read(chunk));
    this.socket.on('drain', () => this.catchUp());
    this.socket.once('close', () => {
      for (const { stop } of this.watches.values()) stop();
      this.watches.clear();
    });
  }

  private read(chunk: Buffer): void {
    try {
      for (const value of this.decoder.push(chunk)) {
        const parsed = clientMessage.safeParse(value);
        if (!parsed.success) {
          throw new CodedError('input/invalid', z.prettifyError(parsed.error).slice(0, 300));
        }
        this.handle(parsed.data);
      }
    } catch (error) {
      this.logger.warn({ reason: (error as Error).message }, 'connection ended: not our protocol');
      this.socket.destroy();
    }
    this.regulate();
  }

  private regulate(): void {
    const busy = this.inWork >= inWorkMax || this.socket.writableLength > unsentBytesMax;
    if (busy) this.socket.pause();
    else if (this.socket.isPaused()) this.socket.resume();
  }

  private handle(message: ClientMessage): void {
    if (message.op === 'stop') {
      this.watches.get(message.id)?.stop();
      this.watches.delete(message.id);
      return;
    }
    if (message.op === 'watch-vm') {
      this.watch(message.id, message.vm as VmName);
      return;
    }
    this.inWork += 1;
    this.work(message)
      .then((items) => this.answer(message.id, items), (error) => this.fail(message.id, error))
      .finally(() => {
        this.inWork -= 1;
        this.regulate();
      });
  }

  private async work(message: Exclude<ClientMessage, { op: 'stop' | 'watch-vm' }>) {
    switch (message.op) {
      case 'propose': {
        const events = parseEvents(message.events);
        if ('problem' in events) throw new CodedError('input/invalid', events.problem);
        return this.core.propose(events, this.identity);
      }
      case 'read-vm': return [this.core.readVm(message.vm as VmName)];
      case 'list-vms': return this.core.listVms();
      case 'list-hosts': return this.core.listHosts();
      case 'migration-end': return [this.core.migrationEnd(message.migration as MigrationId)];
    }
  }

  private watch(id: number, vm: VmName): void {
    if (this.watches.has(id) || this.watches.size >= watchCountMax) {
      this.fail(id, new CodedError('input/invalid', 'too many watches, or that id is one'));
      return;
    }
    try {
      this.push(id, this.core.readVm(vm));
      const watch: Watch = {
        vm, due: false,
        stop: this.core.onVmChange(vm, (entry) => {
          if (this.socket.writableLength > unsentBytesMax) watch.due = true;
          else this.push(id, entry);
        }),
      };
      this.watches.set(id, watch);
    } catch (error) {
      this.fail(id, error);
    }
  }

  private catchUp(): void {
    for (const [id, watch] of this.watches) {
      if (!watch.due) continue;
      watch.due = false;
      try {
        this.push(id, this.core.readVm(watch.vm));
      } catch (error) {
        this.fail(id, error);
      }
    }
    this.regulate();
  }

  private push(id: number, entry: VmEntry | null): void {
    this.send({ version: wireVersion, id, items: [entry], more: true });
  }

  /** Packs items into as many frames as they need; the last one says that it is. */
  private answer(id: number, items: readonly unknown[]): void {
    let packed: unknown[] = [];
    let packedBytes = 0;
    for (const item of items) {
      const itemBytes = items.length === 1 ? 0 : JSON.stringify(item).length;
      if (packed.length > 0 && packedBytes + itemBytes > packedBytesMax) {
        this.send({ version: wireVersion, id, items: packed, more: true });
        packed = [];
        packedBytes = 0;
      }
      packed.push(item);
      packedBytes += itemBytes;
    }
    this.send({ version: wireVersion, id, items: packed, more: false });
  }

  private fail(id: number, error: unknown): void {
    const coded = error instanceof CodedError ? error : new CodedError('internal', String(error));
    const code: FailureCode = coded.code;
    if (code === 'internal') this.logger.error({ err: error }, 'request failed');
    this.send({ version: wireVersion, id, error: { code, detail: coded.detail.slice(0, 1_000) } });
  }

  private send(message: unknown): void {
    if (this.socket.destroyed) return;
    try {
      this.socket.write(encodeFrame(message));
    } catch (error) {
      this.logger.error({ err: error }, 'an answer does not fit a frame');
      this.socket.destroy();
    }
  }
}
