import { expect, test } from 'vitest';
import { hostName, migrationId, requestId, vmName } from '../../../contracts/identity.ts';
import type { TransferRecord, VmEntry } from '../../../contracts/ownership.ts';
import { nextSourceStep, type SourceView } from './source-decision.ts';

const migration = migrationId(vmName('web'), requestId('r1'));
const record: TransferRecord = {
  version: 1, migration, epoch: 3, digest: 'aa', missingDigest: '', missingPageCount: 0,
  ioSequence: [], signature: '',
};
const preparing = {
  version: 1, vm: vmName('web'), phase: 'preparing', epoch: 3, owner: hostName('h1'),
  previous: null, migration, target: hostName('h2'), lastStarted: 3, startedBefore: 2,
  startedBy: null, diskHolder: hostName('h1'), quiesced: record, ready: null,
  postCopyAllowed: false, commitDelegated: true, desired: 'running',
  spec: {} as VmEntry['spec'], cause: '', changedAtMs: 0,
} as VmEntry;
const committed: VmEntry = {
  ...preparing, phase: 'unsettled', epoch: 4, owner: hostName('h2'), previous: hostName('h1'),
  ready: record,
};
const view: SourceView = {
  host: hostName('h1'), migration, epoch: 3, entry: preparing, targetGaveUp: false,
  targetRuns: false,
  waitedMs: 5, selfDecisionMs: 2000,
};

test.each<[string, Partial<SourceView>, string]>([
  ['a young blackout waits', {}, 'wait'],
  ['two seconds without Ready ask for an abort', { waitedMs: 2000 }, 'propose-abort'],
  ['a target that gave up is not waited for', { targetGaveUp: true }, 'propose-abort'],
  ['with Ready recorded time alone aborts nothing',
    { entry: { ...preparing, ready: record }, waitedMs: 60_000 }, 'wait'],
  ['after Commit it waits for the start', { entry: committed }, 'wait'],
  ['a target that died after Commit is reverted',
    { entry: committed, targetGaveUp: true }, 'propose-revert'],
  ['a started target is forward only, even if its link is gone',
    { entry: { ...committed, lastStarted: 4 }, targetGaveUp: true, waitedMs: 60_000 },
    'handed-over'],
  ['a start may still be declined', { entry: { ...committed, lastStarted: 4 } }, 'wait'],
  ['a target that says that it runs is forward only',
    { entry: { ...committed, lastStarted: 4 }, targetRuns: true }, 'handed-over'],
  ['a target that needs pages first is not waited for',
    { entry: { ...committed, lastStarted: 4, ready: { ...record, missingPageCount: 9 } } },
    'handed-over'],
  ['a start that is settled is not declined any more',
    { entry: { ...committed, phase: 'owned', lastStarted: 4 } }, 'handed-over'],
  ['an abort gives the VM back', { entry: { ...preparing, phase: 'owned' } }, 'resume'],
  ['a revert gives it back under the new epoch',
    { entry: { ...committed, phase: 'owned', epoch: 5, owner: hostName('h1') } }, 'resume'],
  ['another open move means: hands off',
    { entry: { ...preparing, migration: migrationId(vmName('web'), requestId('r2')) } }, 'lost'],
  ['an entry that went on without us means: hands off',
    { entry: { ...committed, epoch: 7, phase: 'owned' } }, 'lost'],
  ['no entry means: hands off', { entry: null }, 'lost'],
])('%s', (_name, change, kind) => {
  expect(nextSourceStep({ ...view, ...change }).kind).toBe(kind);
});

test('no time-out ever resumes the source without the ledger', () => {
  for (const entry of [preparing, committed, { ...committed, lastStarted: 4 }]) {
    for (const targetGaveUp of [false, true]) {
      const step = nextSourceStep({ ...view, entry, targetGaveUp, waitedMs: 1e9 });
      expect(step.kind).not.toBe('resume');
    }
  }
});
