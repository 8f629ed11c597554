import { mkdtempSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ServiceError } from '@temporalio/client';
import { expect, test } from 'vitest';
import { CodedError } from '../../contracts/failures.ts';
import { codedErrorOf } from '../../contracts/foreign-errors.ts';

const thrownBy = (work: Promise<unknown>): Promise<unknown> =>
  work.then(() => null, (error: unknown) => error);
const connecting = (where: string | number): Promise<unknown> => new Promise((_resolve, reject) => {
  const socket = typeof where === 'string' ? connect(where) : connect(where, '127.0.0.1');
  socket.on('error', reject);
});
const temporalIs = (status: number): ServiceError => new ServiceError('describe failed', {
  cause: Object.assign(new Error('from gRPC'), { code: status, details: '', metadata: {} }),
});

test('what the kernel and Temporal say has a row of its own', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'novacron-foreign-'));
  try {
    const cases: [unknown, string][] = [
      [await thrownBy(writeFile('/dev/full', 'x')), 'disk/full'],
      [await thrownBy(readFile(join(directory, 'none'))), 'host/files'],
      [await thrownBy(readFile(directory)), 'host/files'],
      [await thrownBy(readFile('/proc/0/stat')), 'vmm/gone'],
      [await thrownBy(connecting(join(directory, 'none.sock'))), 'host/files'],
      [await thrownBy(connecting(1)), 'link/lost'],
      [Object.assign(new Error('open'), { code: 'EMFILE' }), 'host/exhausted'],
      [temporalIs(14), 'temporal/unreachable'],
      [temporalIs(3), 'internal'],
      [new Error('odd'), 'internal'],
      ['a word', 'internal'],
    ];
    for (const [error, code] of cases) {
      expect(codedErrorOf(error), String(error)).toMatchObject({ code });
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('a coded failure stays the one that it is', () => {
  const error = new CodedError('vmm/gone', 'x');
  expect(codedErrorOf(error)).toBe(error);
});
