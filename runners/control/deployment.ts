/** Which version of the control worker new workflows go to. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';

/** The server learns of a version when its first poll arrives. */
const registrationMsMax = 30_000;
const lookEveryMs = 250;

/** `always`: take over at once (one machine). `first`: only where no version is current yet. */
export type TakeOver = 'always' | 'first';

/**
 * Makes a build current once its pollers have registered; running PINNED workflows stay with the
 * build that they began with. Answers whether it is current now. In production only the very first
 * build makes itself current; later ones are rolled out by the operator
 * (`temporal worker deployment set-current-version`).
 */
export async function makeCurrent(
  client: Client,
  version: { readonly deploymentName: string; readonly buildId: string },
  takeOver: TakeOver,
): Promise<boolean> {
  const { deploymentName, buildId } = version;
  const { workflowService } = client;
  const namespace = client.options.namespace;
  const deadline = performance.now() + registrationMsMax;
  for (;;) {
    try {
      const { workerDeploymentInfo: info, conflictToken } =
        await workflowService.describeWorkerDeployment({ namespace, deploymentName });
      const current = info?.routingConfig?.currentDeploymentVersion?.buildId ?? '';
      if (current === buildId) return true;
      if (current !== '' && takeOver === 'first') return false;
      await workflowService.setWorkerDeploymentCurrentVersion({
        namespace, deploymentName, buildId, conflictToken, identity: 'novacron-control',
        // Old builds may poll queues that a new one does not have; there is one queue here.
        ignoreMissingTaskQueues: true,
      });
      return true;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(lookEveryMs);
    }
  }
}
