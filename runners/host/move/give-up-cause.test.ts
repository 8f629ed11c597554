import { expect, test } from 'vitest';
import { CodedError, failureReport } from '../../../contracts/failures.ts';
import type { FailureReport } from '../../../contracts/failures.ts';
import { giveUpCause, lostWithRunner, whyTakenBack } from './give-up-cause.ts';

const broken = new CodedError('link/refused', 'the target expects no such move');
const full = failureReport('preflight/memory', 'no space left');
const never = new Promise<never>(() => undefined);

test('a broken lane gives way to what the target says of itself a moment later', async () => {
  let told: FailureReport | null = null;
  const lost = Promise.withResolvers<never>();
  const cause = giveUpCause(broken, {
    lost: () => lost.promise, told: () => told, sleep: () => never });
  told = full;
  lost.reject(new Error('told'));
  expect(await cause).toMatchObject({ code: 'preflight/memory', detail: 'no space left' });
});

test('a target that says nothing, or whose link is gone, leaves what was seen', async () => {
  const silent = { lost: () => never, told: () => null, sleep: () => Promise.resolve() };
  expect(await giveUpCause(broken, silent)).toBe(broken);
  expect(await giveUpCause(broken, { ...silent, lost: null, sleep: () => never })).toBe(broken);
});

test('a cancel and a failure of our own stay what they are', async () => {
  const said = { lost: null, told: () => full, sleep: () => never };
  const cancelled = new CodedError('migration/cancelled', 'by ann');
  expect(await giveUpCause(cancelled, said)).toBe(cancelled);
  expect(await giveUpCause(new Error('odd'), said)).toMatchObject({ code: 'internal' });
});

test('what broke of our own session gives way too, but not to an echo of itself', async () => {
  const own = new CodedError('engine/failed', 'device state failed');
  const silent = { lost: null, sleep: () => never };
  expect(await giveUpCause(own, { ...silent, told: () => full }))
    .toMatchObject({ code: 'preflight/memory' });
  const gone = failureReport('link/lost', 'the source is gone');
  expect(await giveUpCause(own, { ...silent, told: () => gone })).toBe(own);
});

test('a VM goes on at its source for what the target says, its link, or its silence', () => {
  expect(whyTakenBack(full, false)).toBe(full);
  expect(whyTakenBack(null, false).code).toBe('link/lost');
  expect(whyTakenBack(null, true).code).toBe('migration/deadline');
  // Nothing is tried afresh: the ledger has ended the migration.
  expect(whyTakenBack(failureReport('runner/session-lost', 'h2'), true).code).toBe('link/lost');
});

test('a refusal tells the next runner that the target has given up, the first the truth', () => {
  expect(lostWithRunner(broken, true)).toMatchObject({ code: 'runner/session-lost' });
  expect(lostWithRunner(broken, false)).toBe(broken);
  const full = new CodedError('disk/full', 'h2');
  expect(lostWithRunner(full, true)).toBe(full);
});
