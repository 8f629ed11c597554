/**
 * Names of changes that a running history would notice, for Temporal's `patched`. One goes when no
 * run that began before it can be open any more.
 */
export const patches = {
  /** A copy is begun afresh only while the history has room for it. */
  attemptsFitHistory: 'attempts-fit-history',
  /** The target is asked once more after Settle: its VMM may have died just before. */
  looksBehindSettle: 'looks-behind-settle',
  /** A move that has met more lost sessions than fit its history goes on as a new run. */
  carriesOn: 'carries-on',
} as const;
