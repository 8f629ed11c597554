import { expect, it } from 'vitest';
import { runProgram } from './run-program.ts';

/** On a bare machine a move once tried for two minutes to find an address in use, without the tool. */
it('a missing program is no host that does not answer: it is named and never retried', async () => {
  await expect(runProgram(['no-such-program', '-x'], { failure: 'host/unreachable' }))
    .rejects.toMatchObject({ code: 'host/program-missing', detail: 'no-such-program' });
});

it('a program that fails is the failure that the caller names, with what it said', async () => {
  await expect(runProgram(['sh', '-c', 'echo no room >&2; exit 3'], { failure: 'disk/full' }))
    .rejects.toMatchObject({ code: 'disk/full', detail: expect.stringContaining('no room') as string });
  await expect(runProgram(['sh', '-c', 'echo yes; exit 3'], { failure: 'disk/full', answerCodes: [3] }))
    .resolves.toBe('yes\n');
});
