/** The daily time in which moves may begin: pure. */
import type { MoveWindow } from '../../contracts/evacuation.ts';

const minuteMs = 60_000;
const dayMs = 24 * 60 * minuteMs;

/** When it opens next, ms since the epoch; null: it is open. A window of no length is a day. */
export function nextOpeningMs(window: MoveWindow | null, nowMs: number): number | null {
  if (window === null || window.fromMinute === window.untilMinute) return null;
  const { fromMinute, untilMinute } = window;
  const passedMs = nowMs % dayMs;
  const [fromMs, untilMs] = [fromMinute * minuteMs, untilMinute * minuteMs];
  const isOpen = fromMs < untilMs
    ? passedMs >= fromMs && passedMs < untilMs
    : passedMs >= fromMs || passedMs < untilMs;
  if (isOpen) return null;
  const dayBeganMs = nowMs - passedMs;
  return passedMs < fromMs ? dayBeganMs + fromMs : dayBeganMs + dayMs + fromMs;
}
