/** Which of the optional things a move may still do, so that its history stays within its limit. */
import { limits } from '../../contracts/limits.ts';

/** A look costs 8 events (timer 2, activity 3, workflow task 3): at most four, ever later. */
const looksMax = 4;
const lookEventsReserve = 80;
/**
 * From here on only what must be possible to the end: a cancel with all that it undoes, which is
 * longer than the way forward with its look behind Settle.
 */
const commandEventsReserve = 62;
const firstLookMs = 5_000;

/** When to look at the session again, ms; null: no further looks. 5 s, 20 s, 80 s, 320 s. */
export const nextLookMs = (lookCount: number, historyEvents: number): number | null =>
  lookCount < looksMax && historyEvents < limits.migrationHistoryEventsMax - lookEventsReserve
    ? firstLookMs * 4 ** lookCount
    : null;

/** 22 for a copy of disks and memory, and all that comes after it. */
const attemptEventsReserve = 56;
/** The look behind Settle, which came later than the figure above. */
export const lastLookEvents = 6;

/** Whether the copy may be begun afresh. */
export const attemptFits = (historyEvents: number): boolean =>
  historyEvents < limits.migrationHistoryEventsMax - attemptEventsReserve;

/** How long a move waits that has copied so often and goes on as a new run, ms: 0, 2, 4 … 30 s. */
export const carryOnWaitMs = (attempts: number): number =>
  (attempts <= 3 ? 0 : Math.min(30_000, 500 * 2 ** Math.floor(attempts / 3)));

const firstSilenceMs = 5_000;
const silenceMsMax = 300_000;

/**
 * How long a session is left alone after so many commands in a row that it did not answer, ms: who
 * repeats them meanwhile is refused, which leaves no event. 5 s, 10 s, 20 s … 5 min.
 */
export const silenceMs = (unansweredCount: number): number => (unansweredCount === 0 ? 0
  : Math.min(silenceMsMax, firstSilenceMs * 2 ** (unansweredCount - 1)));

/** Whether another command fits; cancel always does, it shortens the history. */
export const commandFits = (historyEvents: number): boolean =>
  historyEvents < limits.migrationHistoryEventsMax - commandEventsReserve;
