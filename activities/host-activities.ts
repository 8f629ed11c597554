/**
 * The activities of one host's task queue: HostOperations with heartbeats, cancellation and coded
 * failures around them. Decides nothing about VMs.
 */
import type { HostActivities, SessionOutcome, StepInput } from '../contracts/migration.ts';
import type { LifecycleHostActivities } from '../contracts/vm-lifecycle.ts';
import { codedActivities, withHeartbeat } from './coded-activity.ts';
import type { HostOperations, OperationCall } from './host-operations.ts';

/**
 * What the worker of a host registers. Every activity heartbeats (heartbeat time-out 3 s), the two
 * that copy with the session's progress as detail, the one that verifies with its check's; clients
 * read both from the pending activity.
 */
export function createHostActivities(
  operations: HostOperations,
): HostActivities & LifecycleHostActivities {
  const step = <Input, Answer>(
    run: (input: Input, call: OperationCall) => Promise<Answer>,
  ) => (input: Input): Promise<Answer> => withHeartbeat((signal) => run(input, { signal }));
  const session = <Input extends StepInput, Answer>(
    run: (input: Input, call: OperationCall) => Promise<Answer>,
  ) => (input: Input): Promise<Answer> =>
    withHeartbeat((signal) => run(input, { signal }), () => operations.peekSession(input));

  return codedActivities<HostActivities & LifecycleHostActivities>({
    inspectVm: step((input, call) => operations.inspectVm(input, call)),
    checkTarget: step((input, call) => operations.checkTarget(input, call)),
    prepareTarget: step((input, call) => operations.prepareTarget(input, call)),
    copyDisk: session((input, call) => operations.copyDisk(input, call)),
    copyMemoryAndSwitchOver: session<Parameters<HostActivities['copyMemoryAndSwitchOver']>[0],
      SessionOutcome>((input, call) => operations.copyMemoryAndSwitchOver(input, call)),
    commandSession: step((input, call) => operations.commandSession(input, call)),
    peekSession: async (input) => operations.peekSession(input),
    verifyTarget: (input) => withHeartbeat(
      (signal) => operations.verifyTarget(input, { signal }), () => operations.peekCheck(input)),
    resolveDamage: step((input, call) => operations.resolveDamage(input, call)),
    releaseSource: step((input, call) => operations.releaseSource(input, call)),
    abortSource: step((input, call) => operations.abortSource(input, call)),
    discardTarget: step((input, call) => operations.discardTarget(input, call)),
    createVmFiles: step((input, call) => operations.createVmFiles(input, call)),
    startVm: step((input, call) => operations.startVm(input, call)),
    stopVm: step((input, call) => operations.stopVm(input, call)),
    destroyVmFiles: step((input, call) => operations.destroyVmFiles(input, call)),
  });
}
