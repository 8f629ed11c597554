/** Which of the optional things a move may still do, so that its history stays within its limit. */
import { limits } from '../../contracts/limits.ts';

/** A look costs 8 events (timer 2, activity 3, workflow task 3): at most four, ever later. */
const looksMax = 4;
const lookEventsReserve = 80;
/** From here on only what must be possible to the end: a cancel with all that it undoes. */
const commandEventsReserve = 62;
const firstLookMs = 5_000;

/** When to look at the session again, ms; null: no further looks. 5 s, 20 s, 80 s, 320 s. */
export const nextLookMs = (lookCount: number, historyEvents: number): number | null =>
  lookCount < looksMax && historyEvents < limits.migrationHistoryEventsMax - lookEventsReserve
    ? firstLookMs * 4 ** lookCount
    : null;

/** Whether another command fits; cancel always does, it shortens the history. */
export const commandFits = (historyEvents: number): boolean =>
  historyEvents < limits.migrationHistoryEventsMax - commandEventsReserve;
