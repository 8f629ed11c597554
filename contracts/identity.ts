/**
 * Names that cross a process: branded ids, their checks, and the builders of workflow ids and task
 * queues with their inverses. Nothing else may glue such a name together.
 */
declare const brand: unique symbol;
type Branded<T, B extends string> = T & { readonly [brand]: B };

/**
 * Name of a VM: 1-40 characters a-z, 0-9 and '-', starting with a letter. It becomes a path part.
 */
export type VmName = Branded<string, 'VmName'>;
/**
 * Name of a host, same alphabet as a VM's, at most 30 characters (it becomes a task queue's name).
 */
export type HostName = Branded<string, 'HostName'>;
/** Chosen by the requester; the same id is the same request. 1-64 of A-Z a-z 0-9 '.' '_' '-'. */
export type RequestId = Branded<string, 'RequestId'>;
/** Identity of a migration everywhere (ledger, streams, workflow): `migrate/<vm>/<requestId>`. */
export type MigrationId = Branded<string, 'MigrationId'>;
/** One VMM process: random 128 bit, hex. The ownership token belongs to it, never to the host. */
export type Incarnation = Branded<string, 'Incarnation'>;

const vmNamePattern = /^[a-z][a-z0-9-]{0,39}$/;
const hostNamePattern = /^[a-z][a-z0-9-]{0,29}$/;
const requestIdPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const incarnationPattern = /^[0-9a-f]{32}$/;

export const isVmName = (text: string): text is VmName => vmNamePattern.test(text);
export const isHostName = (text: string): text is HostName => hostNamePattern.test(text);
export const isRequestId = (text: string): text is RequestId => requestIdPattern.test(text);
export const isIncarnation = (text: string): text is Incarnation => incarnationPattern.test(text);

function checked<T extends string>(
  text: string,
  is: (text: string) => text is T & string,
  what: string,
  rule: string,
): T {
  if (is(text)) return text;
  throw new TypeError(`${what} ${JSON.stringify(text.slice(0, 80))} is not valid: ${rule}`);
}

const nameRule = "a-z, 0-9 and '-', starting with a letter";
export const vmName = (text: string): VmName =>
  checked(text, isVmName, 'VM name', `1 to 40 of ${nameRule}`);
export const hostName = (text: string): HostName =>
  checked(text, isHostName, 'host name', `1 to 30 of ${nameRule}`);
export const requestId = (text: string): RequestId =>
  checked(text, isRequestId, 'request id', "1 to 64 of A-Z a-z 0-9 '.' '_' '-'");
export const incarnation = (text: string): Incarnation =>
  checked(text, isIncarnation, 'incarnation', '32 hex digits');

/** Workflow id and migration id of one request to move one VM. */
export const migrationId = (vm: VmName, request: RequestId): MigrationId =>
  `migrate/${vm}/${request}` as MigrationId;

/** Inverse of `migrationId`; null when the text is not one. */
export function parseMigrationId(text: string): { vm: VmName; request: RequestId } | null {
  const [kind, vm, request, ...rest] = text.split('/');
  if (kind !== 'migrate' || vm === undefined || request === undefined || rest.length > 0) {
    return null;
  }
  return isVmName(vm) && isRequestId(request) ? { vm, request } : null;
}

/** Workflow id of the clean-up of a migration whose own workflow is gone. */
export const finishMigrationId = (migration: MigrationId): string => `finish/${migration}`;

/** Workflow id of the evacuation of a host: Temporal lets only one of an id run at a time. */
export const evacuationId = (host: HostName): string => `evacuate/${host}`;

/** Longest request id of an evacuation: those of its moves are made of it. */
export const evacuationRequestLengthMax = 56;
/** Request id of an evacuation's n-th try to move a VM. */
export const evacuationMoveRequest = (request: RequestId, attempt: number): RequestId =>
  requestId(`${request}.${attempt}`);

/** Workflow id of one life-cycle step of a VM. */
export const lifecycleWorkflowId = (
  step: 'create' | 'delete' | 'start' | 'stop' | 'resolve' | 'failover',
  vm: VmName,
  request: RequestId,
): string => `${step}/${vm}/${request}`;

/** Request id of the failover of a VM that has this epoch: the same one, whoever starts it. */
export const failoverRequest = (epoch: number): RequestId => requestId(`e${epoch}`);

/** Task queue of the control worker: workflows, planning; nothing that touches a host. */
export const controlTaskQueue = 'control';
/** Task queue that only the runner of this host polls. */
export const hostTaskQueue = (host: HostName): string => `host-${host}`;
/** Inverse of `hostTaskQueue`; null when the queue is not a host's. */
export function hostOfTaskQueue(queue: string): HostName | null {
  const name = queue.startsWith('host-') ? queue.slice('host-'.length) : '';
  return isHostName(name) ? name : null;
}

/** Roles that a certificate can carry; the ledger checks them against its table. */
export type Role =
  | 'control' | 'host' | 'ledger' | 'operator' | 'codec' | 'temporal' | 'volume' | 'lab';
/** What a certificate says about its holder, as URI `novacron://<role>/<name>` in its SAN. */
export interface Identity {
  readonly role: Role;
  readonly name: string;
}
const roles: readonly Role[] = [
  'control', 'host', 'ledger', 'operator', 'codec', 'temporal', 'volume', 'lab',
];
/** The SAN URI of an identity. */
export const identityUri = ({ role, name }: Identity): string => `novacron://${role}/${name}`;
/** Inverse of `identityUri`; null for anything else. */
export function parseIdentityUri(uri: string): Identity | null {
  const match = /^novacron:\/\/([a-z]+)\/([a-z][a-z0-9-]{0,39})$/.exec(uri);
  const role = roles.find((known) => known === match?.[1]);
  return role !== undefined && match?.[2] !== undefined ? { role, name: match[2] } : null;
}
