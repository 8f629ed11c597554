/**
 * The closed list of failures. Every error that leaves a process carries one of these codes; retry
 * policies take their non-retryable codes from here and docs/failures.md is generated from it.
 */

/** Who has to do something about a failure. */
export type Actor = 'nobody' | 'requester' | 'operator' | 'developer';

interface FailureRow {
  /** What happened, for people; the instance adds names and figures. */
  readonly message: string;
  readonly retryable: boolean;
  readonly actor: Actor;
  /** What to do about it, one sentence. */
  readonly remedy: string;
}

const row = (
  message: string, retryable: boolean, actor: Actor, remedy: string,
): FailureRow => ({ message, retryable, actor, remedy });

export const failures = {
  'input/invalid': row('The request is not valid', false, 'requester', 'Correct the named field.'),
  'vm/unknown': row('No VM of that name', false, 'requester', 'See `novacron vm list`.'),
  'vm/exists': row('A VM of that name exists', false, 'requester', 'Choose another name.'),
  'vm/not-running': row('The VM is not running', false, 'requester', 'Start it first.'),
  'vm/stopped-itself': row(
    'The guest shut down during the move', false, 'nobody', 'Start it again on its owner.'),
  'vm/memory-lost': row(
    'Its VMM died at the target after the start: the VM was booted cold there', false, 'operator',
    'See why the VMM died (`novacron why VM`, its log); what was only in memory is gone.'),
  'vm/start-failed': row(
    'The VM could not be started', false, 'operator', 'Read its log with `novacron vm console`.'),
  'vm/image-refused': row(
    'The disk image is refused', false, 'requester',
    'Use a raw or qcow2 image without backing file.'),
  'host/unknown': row('No host of that name', false, 'requester', 'See `novacron host list`.'),
  'host/unreachable': row(
    'The host does not answer', true, 'operator', 'Check its runner and its network.'),
  'host/program-missing': row(
    'A program that the runner needs is missing', false, 'operator',
    'Install the named program on that host, see `novacron doctor`.'),
  'host/files': row(
    'A file or local socket of the host cannot be used', false, 'operator',
    'Check the named path, its disk and its rights on that host, then repeat.'),
  'host/exhausted': row(
    'The host has run out of memory, processes or descriptors', true, 'operator',
    'Free some there or raise the limit of its runner; the step is repeated meanwhile.'),
  'host/cordoned': row(
    'The host takes no new VMs', false, 'requester',
    'Choose another, or `novacron host uncordon`.'),
  'preflight/memory': row(
    'The target has too little free memory', false, 'requester', 'Choose another target.'),
  'preflight/disk': row(
    'The target has too little free disk', false, 'requester', 'Choose another target.'),
  'preflight/cpu': row(
    'The target lacks CPU flags that the guest uses', false, 'requester', 'Choose another target.'),
  'preflight/machine': row(
    'The target does not offer the machine type', false, 'operator', 'Upgrade QEMU on the target.'),
  'preflight/qemu': row(
    'The QEMU on the target is too old', false, 'operator', 'Upgrade QEMU on the target.'),
  'preflight/name-taken': row(
    'Something of that VM already lives on the target', false, 'operator',
    'See `novacron why VM`; leftovers are removed by the sweep of the runner.'),
  'preflight/address-taken': row(
    'The address is answered on the target segment by another machine', false, 'operator',
    'Find the machine that uses it.'),
  'preflight/segment': row(
    'The target is not on the segment of the VM', false, 'requester', 'Choose another target.'),
  'preflight/kernel': row(
    'A kernel feature is missing', false, 'operator', 'Linux 6.7 or newer with userfaultfd.'),
  'preflight/layout': row(
    'The engine cannot move this layout exactly', false, 'requester', 'Change the named device.'),
  'preflight/volume': row(
    'The volume server does not serve this host', true, 'operator',
    'Check the volume server, its gate and the network to it.'),
  'preflight/local-disk': row(
    'The VM has a disk that only its own host holds', false, 'operator', 'Bring that host back.'),
  'migration/open': row(
    'The VM is already being moved', false, 'requester', 'Wait for it or cancel it.'),
  'migration/unknown': row('No such migration', false, 'requester',
    'See `novacron migration list`.'),
  'evacuation/open': row(
    'The host is already being evacuated under another request', false, 'requester',
    'Wait for it, change it with `novacron evacuation set`, or cancel it.'),
  'evacuation/unknown': row('No evacuation of that host is known', false, 'requester',
    'Start one with `novacron host evacuate HOST`.'),
  'evacuation/no-target': row(
    'No host takes the VM now', false, 'operator',
    'Free room on a host or name others; each host is listed with its reason.'),
  'migration/same-host': row('The VM is already there', false, 'nobody', 'Nothing to do.'),
  'migration/cancelled': row('The move was cancelled', false, 'nobody', 'Start a new one.'),
  'migration/past-return': row(
    'The point of no return is passed', false, 'nobody', 'The move goes on to its end.'),
  'migration/deadline': row(
    'The move did not end in time', false, 'requester', 'Allow post-copy or a larger budget.'),
  'migration/not-converging': row(
    'The guest writes faster than the link carries', false, 'requester',
    'Allow post-copy, a larger downtime budget or more bandwidth.'),
  'migration/digest': row(
    'Source and target disagree about the memory', false, 'developer',
    'The VM runs on at the source; keep both logs and report it.'),
  'migration/damaged': row(
    'A wrong page was written at the target before it was found', false, 'operator',
    'The VM stands, both images are kept: `novacron vm resolve VM --accept` or `--cold`.'),
  'migration/taken-back': row(
    'The target did not start the VM: it went back to its source', false, 'requester',
    'Look at the target\'s log, then start the move again.'),
  'migration/target-gone': row(
    'The VMM that was to take the VM over has ended', false, 'operator',
    'The VM goes on at its source: look at the target\'s log, then start the move again.'),
  'migration/not-here': row(
    'This runner has no such session', true, 'nobody', 'The step is repeated.'),
  'runner/session-lost': row(
    'A runner was started anew or out of reach, and its half of the move is gone', false, 'nobody',
    'The move is tried afresh by itself; if it has ended, start it again.'),
  'link/lost': row('The link between the hosts broke', true, 'operator', 'Check the network.'),
  'link/refused': row(
    'The peer refused the connection', false, 'operator', 'Check certificates and roles.'),
  'vmm/protocol': row('The VMM answered unexpectedly', false, 'developer',
    'Report it with its log.'),
  'vmm/gone': row('The VMM process is gone', false, 'operator',
    'See its log; the VM is started cold.'),
  'vmm/timeout': row('The VMM did not answer in time', true, 'operator', 'Check the host load.'),
  'engine/tracking': row(
    'Dirty tracking is not possible', false, 'operator', 'Linux 6.7 or newer with userfaultfd.'),
  'engine/failed': row('The memory engine failed', true, 'developer', 'Report it with its log.'),
  'disk/mirror': row('The disk mirror failed', false, 'operator', 'Check disk and link.'),
  'disk/full': row('A disk is full', false, 'operator', 'Free space, then repeat.'),
  'ownership/refused': row(
    'The ledger refused the step', false, 'nobody',
    'The current state decides; see `novacron why`.'),
  'ownership/role': row(
    'The certificate does not allow that step', false, 'operator', 'Use the right identity.'),
  'ownership/lease': row(
    'The owner may still run the VM: its lease has not run out', true, 'nobody',
    'It is asked again; without a lease, say how the host was fenced (`--fence`).'),
  'ownership/unreachable': row('The ledger does not answer', true, 'operator', 'Start the ledger.'),
  'temporal/unreachable': row(
    'Temporal does not answer', true, 'operator', 'Start it, or correct its address.'),
  'control/unreachable': row(
    'No control worker answers', true, 'operator',
    'Start a control worker; what was asked for waits for it.'),
  'certificate/revoked': row(
    'The certificate is revoked or expired', false, 'operator', 'Run `novacron cert rotate`.'),
  'internal': row('A mistake of ours', false, 'developer', 'Report it with its log.'),
} as const satisfies Record<string, FailureRow>;

export type FailureCode = keyof typeof failures;

export const isFailureCode = (text: string): text is FailureCode => Object.hasOwn(failures, text);

/** Codes that a retry can't help; Temporal's retry policies take theirs from here. */
export const nonRetryableCodes: readonly FailureCode[] = (
  Object.keys(failures) as FailureCode[]
).filter((code) => !failures[code].retryable);

/** An error of the closed list. `detail` names what and where, never a secret. */
export class CodedError extends Error {
  override readonly name = 'CodedError';
  readonly code: FailureCode;
  readonly detail: string;

  constructor(code: FailureCode, detail: string, cause?: unknown) {
    super(`${code}: ${failures[code].message}: ${detail}`, cause === undefined ? {} : { cause });
    this.code = code;
    this.detail = detail;
  }
}

/**
 * A failure after which repeating the same step is pointless, whatever the table says of its code:
 * it would join the same ended try. A new request may well succeed.
 */
export class FinalError extends CodedError {}

/** Fields of a failure as they travel in outcomes, queries and JSON output. */
export interface FailureReport {
  readonly code: FailureCode;
  readonly message: string;
  readonly detail: string;
  readonly remedy: string;
}

export const failureReport = (code: FailureCode, detail: string): FailureReport => ({
  code,
  message: failures[code].message,
  detail,
  remedy: failures[code].remedy,
});

/** Fields of the carrier that takes a CodedError through Temporal: its `type` is the code. */
export interface FailureFields {
  readonly type: FailureCode;
  readonly message: string;
  readonly details: [string];
  readonly nonRetryable: boolean;
}

/** The one mapping from a coded failure to Temporal's ApplicationFailure; see `readFailure`. */
export const failureFields = (code: FailureCode, detail: string): FailureFields => ({
  type: code,
  message: `${failures[code].message}: ${detail}`,
  details: [detail],
  nonRetryable: !failures[code].retryable,
});

/** Causes followed by `readFailure`; Temporal nests three or four. */
const causeDepthMax = 10;

/**
 * The inverse of `failureFields`, by structure and not by class, so that workflows, clients and
 * tests may use it: the first coded failure on the chain of causes, else null.
 */
export function readFailure(error: unknown): FailureReport | null {
  let current: unknown = error;
  for (let depth = 0; depth < causeDepthMax; depth += 1) {
    if (typeof current !== 'object' || current === null) return null;
    const { type, code, detail, details, cause } = current as Record<string, unknown>;
    if (typeof code === 'string' && isFailureCode(code) && typeof detail === 'string') {
      return failureReport(code, detail);
    }
    if (typeof type === 'string' && isFailureCode(type)) {
      const first: unknown = Array.isArray(details) ? details[0] : undefined;
      return failureReport(type, typeof first === 'string' ? first : '');
    }
    current = cause;
  }
  return null;
}
