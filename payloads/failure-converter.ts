/**
 * Failures as Temporal stores them: message and stack are moved into a payload, which the codec
 * encrypts. Loaded by path, also inside the workflow sandbox: nothing of node here.
 */
import { DefaultFailureConverter } from '@temporalio/common';

/** The name that Temporal's SDK looks for. */
export const failureConverter = new DefaultFailureConverter({ encodeCommonAttributes: true });
