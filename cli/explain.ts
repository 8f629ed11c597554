/**
 * `why`: what a VM or a move waits for, on whom, since when, and the next command. Pure, from the
 * ledger's entry and the move's view; the ledger decides, the view only adds what it knows.
 */
import { parseMigrationId } from '../contracts/identity.ts';
import { timing } from '../contracts/limits.ts';
import type { HostView, MigrationEnd, VmEntry } from '../contracts/ownership.ts';
import { outlivesItsHost } from '../contracts/runner.ts';
import type { MoveView } from './backend.ts';
import { outlookAdvice } from './outlook.ts';
import { formatMillis } from './progress.ts';

/** One answer; `waitsFor` null means that nothing is waited for. */
export interface Explanation {
  readonly state: string;
  readonly waitsFor: string | null;
  readonly on: string | null;
  readonly sinceMs: number | null;
  readonly because: readonly string[];
  readonly nextCommand: string | null;
}

const stay = (more: Partial<Explanation> & { state: string }): Explanation =>
  ({ waitsFor: null, on: null, sinceMs: null, because: [], nextCommand: null, ...more });

/** A host that the ledger does not hear any more. */
export interface Silence {
  readonly host: string;
  readonly sinceMs: number;
}

/** Whether the ledger has missed a host for longer than a restart of its runner takes. */
export function silenceOf(
  { hosts, host, nowMs }: {
    readonly hosts: readonly HostView[]; readonly host: string | null; readonly nowMs: number;
  },
): Silence | null {
  const view = hosts.find(({ facts }) => facts.name === host);
  return view === undefined || host === null || view.silentForMs <= timing.hostSilentMsMax
    ? null : { host, sinceMs: nowMs - view.silentForMs };
}

const sayingOf = ({ host, sinceMs }: Silence): string =>
  `${host} has not been heard from since ${new Date(sinceMs).toISOString()}`;

/** Its disks are on volume servers: another host starts it, by itself or when somebody asks. */
function explainFailover(entry: VmEntry, { host, sinceMs }: Silence): Explanation {
  const { vm, epoch, spec } = entry;
  const heard = new Date(sinceMs).toISOString();
  const isAutomatic = spec.failover === 'automatic';
  return {
    state: `${vm} belongs to ${host}, epoch ${epoch}, which has not been heard from since ${heard}`,
    waitsFor: isAutomatic ? 'a host that starts it' : 'somebody who says that its host is off',
    on: isAutomatic ? 'the control workers' : 'you', sinceMs,
    because: [
      'its disks are on volume servers: another host can start it',
      isAutomatic
        ? 'it is given to another host by itself once its lease has run out'
        : 'no lease binds it: it may still run there, unseen',
      `last entry: ${entry.cause}`,
    ],
    nextCommand: isAutomatic ? `novacron failover ${vm}`
      : `novacron failover ${vm} --fence "HOW YOU KNOW THAT ${host} IS OFF"`,
  };
}

/** What a VM's silent owner means for it: its disks are there, so nobody else may start it. */
function explainSilence(entry: VmEntry, { host, sinceMs }: Silence): Explanation {
  const { vm, diskHolder, epoch } = entry;
  const heard = new Date(sinceMs).toISOString();
  return {
    state: `${vm} belongs to ${host}, epoch ${epoch}, which has not been heard from since ${heard}`,
    waitsFor: 'its host to come back', on: host, sinceMs,
    because: [
      `its disks are local to ${diskHolder}: no other host can start it, and none will`,
      entry.spec.failover === 'automatic'
        ? 'its lease is over: if it still ran, its guard has paused it there'
        : 'no lease binds it: it may still run there, unseen',
      `power ${host} on, or start the runner there: systemctl start novacron-runner; `
        + 'then it goes on, or is started again, by itself',
      `last entry: ${entry.cause}`,
    ],
    nextCommand: `novacron host show ${host}`,
  };
}

/** What the ledger's entry says, and the silence of its owner, if it is silent. */
export function explainEntry(entry: VmEntry, silence: Silence | null = null): Explanation {
  if (silence !== null && entry.phase === 'owned' && entry.desired === 'running') {
    return outlivesItsHost(entry.spec)
      ? explainFailover(entry, silence) : explainSilence(entry, silence);
  }
  const { vm, owner, target, epoch, lastStarted, migration, changedAtMs, quiesced, ready } = entry;
  const because = [
    ...(silence === null ? [] : [sayingOf(silence)]),
    `last entry: ${entry.cause}`,
  ];
  const host = owner ?? 'nobody';
  const show = migration === null ? null : `novacron migration show ${migration}`;
  const waits = (state: string, waitsFor: string, on: string): Explanation =>
    ({ state, waitsFor, on, sinceMs: changedAtMs, because, nextCommand: show });
  switch (entry.phase) {
    case 'absent':
      return stay({ state: `${vm} is deleted`, because, nextCommand: 'novacron vm list' });
    case 'owned':
      if (entry.desired === 'stopped') {
        return stay({ state: `${vm} is stopped on ${host}, epoch ${epoch}`, because,
          nextCommand: `novacron vm start ${vm}` });
      }
      return lastStarted === epoch
        ? stay({ state: `${vm} belongs to ${host} and runs there, epoch ${epoch}`, because,
          nextCommand: `novacron vm show ${vm}` })
        : { ...waits(`${vm} belongs to ${host}, epoch ${epoch}, and has not started under it`,
          'its start', `the runner of ${host}`), nextCommand: `novacron host show ${host}` };
    case 'preparing': {
      const state = `${vm} runs on ${host} and is being moved to ${target ?? '?'}`;
      if (quiesced === null) {
        return waits(state, 'the copy of memory and disks', `the runner of ${host}`);
      }
      if (ready === null) {
        return waits(`${vm} is stopped for the hand-over`, 'Ready of the target',
          `the runner of ${target ?? '?'}`);
      }
      return waits(`${vm} is stopped for the hand-over, both sides agree`, 'the Commit',
        'the target or the control worker');
    }
    case 'unsettled':
      return lastStarted === epoch
        ? waits(`${vm} runs on ${host}; the hand-over is not settled`,
          'the last pages and checks', `the runner of ${host}`)
        : waits(`${vm} was given to ${host} and has not started there`, 'its first instruction',
          `the runner of ${host}`);
  }
}

/** Adds what the running workflow knows to what the ledger says. */
export function explainMove(
  { migration, view, entry, end, silent, silence = null }: {
    readonly migration: string; readonly view: MoveView | null; readonly entry: VmEntry | null;
    readonly end: MigrationEnd | null;
    /** Somebody who was asked did not answer: what is missing may be there. */
    readonly silent: boolean;
    /** The owner, when the ledger does not hear it. */
    readonly silence?: Silence | null;
  },
): Explanation {
  const vm = parseMigrationId(migration)?.vm ?? '?';
  const ledger = end === null ? [] : [`the ledger has it as ${end}`];
  if (view === null) {
    const below = entry !== null ? explainEntry(entry, silence) : silent
      ? stay({ state: `nothing can be said about ${migration}`, waitsFor: 'an answer',
        on: 'those named below', nextCommand: 'novacron doctor' })
      : stay({ state: `the ledger has ${vm} in no such move` });
    return { ...below,
      because: [...(silent ? [] : ['Temporal knows no such run']), ...ledger, ...below.because] };
  }
  const { status, attempt, lastFailure } = view;
  const because = [
    ...ledger,
    ...(silence === null ? [] : [sayingOf(silence)]),
    ...(attempt > 1 ? [`the step is in attempt ${attempt}`] : []),
    ...(lastFailure === null ? [] : [`last failure: ${lastFailure}`]),
    ...(status.progress?.paused === true ? ['the copy is paused'] : []),
    ...(status.progress?.mirrorMode === 'write-blocking'
      ? ['the disk writes of the guest wait for the target (write-blocking mirror)'] : []),
    ...(status.progress === null || status.progress.convergence === ''
      ? [] : [`convergence: ${status.progress.convergence}`]),
  ];
  if (status.outcome !== null) {
    const { outcome } = status;
    const failed = outcome.kind === 'failed';
    const choose = `novacron vm resolve ${vm} --accept (or --cold)`;
    return stay({
      state: `the move of ${vm} ended: ${outcome.kind}`,
      because: outcome.kind === 'damaged' ? [outcome.exactness.detail, ...because] : failed
        ? [`${outcome.failure.message} (${outcome.failure.code}): ${outcome.failure.detail}`,
          ...because]
        : because,
      nextCommand: outcome.kind === 'damaged' ? choose : failed || outcome.kind === 'cancelled'
        ? `novacron migrate ${vm} --to ${status.target}` : `novacron vm show ${vm}`,
    });
  }
  const paused = status.progress?.paused === true;
  const advice = outlookAdvice({ migration, status });
  const [first] = advice?.remedies ?? [];
  return {
    state: `${vm} is being moved from ${status.source ?? '?'} to ${status.target}: `
      + `${status.phase}, ${status.percent} %`
      + (status.pointOfNoReturnPassed ? ', past the point of no return' : ''),
    waitsFor: paused ? '`resume`' : status.waitingFor?.what ?? null,
    on: paused ? 'you' : null,
    sinceMs: status.waitingFor?.sinceMs ?? null,
    because: advice === null ? because
      : [advice.reason, ...advice.remedies.map(({ command, effect }) => `${command}: ${effect}`),
        ...because],
    nextCommand: paused ? `novacron migration resume ${migration}`
      : first?.command ?? `novacron migration watch ${migration}`,
  };
}

/** Lines for people; `nowMs` turns "since" into a duration. */
export function explanationLines(
  { explanation, nowMs }: { readonly explanation: Explanation; readonly nowMs: number },
): string[] {
  const { state, waitsFor, on, sinceMs, because, nextCommand } = explanation;
  return [
    state,
    waitsFor === null ? '  waits for nothing'
      : `  waits for ${waitsFor}${on === null ? '' : ` from ${on}`}`
        + (sinceMs === null ? '' : `, for ${formatMillis(Math.max(0, nowMs - sinceMs))}`
          + ` (since ${new Date(sinceMs).toISOString()})`),
    ...because.map((reason) => `  because: ${reason}`),
    ...(nextCommand === null ? [] : [`  next: ${nextCommand}`]),
  ];
}
