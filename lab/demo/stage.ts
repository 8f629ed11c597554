/**
 * The demo's lab: one a machine, found again when it is whole and runs this code, else raised. Also
 * its end. Decides whose lab may be used or removed; what is shown in it is main.ts's.
 */
import { createHash } from 'node:crypto';
import { copyFileSync, mkdirSync, readdirSync, rmdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { probeAccelerator } from '../../infra/doctor/accelerator.ts';
import { CodedError } from '../../contracts/failures.ts';
import { composeLab, imageDirectory, servicesOf } from '../compose.ts';
import type { LabServices } from '../compose.ts';
import { placeGuestImage, projectRoot, systemQemuProgram } from '../guest-image.ts';
import { Lab, lowerLab, removeEmptyRoots, sweepDeadLabs } from '../lab.ts';
import { listLabs, readLabState } from '../state.ts';

/** What a demo goes by on its machine; tests take another name than people do. */
export const demoName = process.env['NOVACRON_DEMO'] ?? 'demo';
/** Where `novacron` looks for the lab (cli/operator-config.ts). */
const operatorDirectory = join(projectRoot, '.novacron', demoName === 'demo' ? 'lab' : demoName);

/** The lab and how it is reached. */
export interface Stage {
  readonly lab: Lab;
  readonly services: LabServices;
}

type Tell = (text: string) => void;

const demoLabs = (): string[] =>
  listLabs().filter((id) => readLabState(id)?.notes['purpose'] === demoName);

/** Removes the demo's lab and what killed runs have left of theirs; answers their ids. */
export async function removeDemo(): Promise<string[]> {
  const ids = demoLabs();
  for (const id of ids) await lowerLab(id);
  const swept = await sweepDeadLabs();
  removeEmptyRoots();
  try {
    rmdirSync(dirname(operatorDirectory));
  } catch {
    // Something else lies in it, or it is not there.
  }
  return [...ids, ...swept];
}

const neededProcesses = (lab: Lab): string[] => [
  'temporal', 'ledger', 'control', 'door-inside', 'door-outside',
  ...lab.plan.hosts.map((host) => `host-${host.name}`),
];

/** Folders whose code the lab's processes run. */
const codeFolders = [
  'contracts', 'payloads', 'activities', 'workflows', 'runners', 'infra/temporal',
  'native/generated',
];

/** Changes when the code of the lab's processes does: a warm lab must not show yesterday's. */
function codeStamp(): string {
  const stamp = createHash('sha256');
  for (const folder of codeFolders) {
    const names = readdirSync(join(projectRoot, folder), { recursive: true, encoding: 'utf8' });
    for (const name of names.toSorted()) {
      const about = statSync(join(projectRoot, folder, name));
      if (about.isFile()) stamp.update(`${folder}/${name} ${about.size} ${about.mtimeMs}\n`);
    }
  }
  return stamp.digest('hex');
}

/** A lab of an earlier demo as a stage, or why it can't be one. */
function reopen(id: string): Stage | string {
  const lab = Lab.open(id);
  const services = lab === null ? null : servicesOf(lab);
  if (lab === null || services === null) return 'was never finished';
  const ended = neededProcesses(lab).filter((name) => !lab.isRunning(name));
  if (ended.length > 0) return `has lost ${ended.join(', ')}`;
  if (lab.notes['code'] !== codeStamp()) return 'runs other code than this';
  return { lab, services };
}

async function raiseStage(tell: Tell): Promise<Stage> {
  const lab = await Lab.raise({
    hostCount: 2, notes: { purpose: demoName, project: projectRoot },
    directories: [operatorDirectory],
  });
  const leave = (): void => {
    void lab.lower().finally(() => process.exit(130));
  };
  process.once('SIGINT', leave).once('SIGTERM', leave);
  try {
    tell(`lab ${lab.id}: two hosts in network namespaces`);
    placeGuestImage(imageDirectory(lab));
    const { accelerator, reason } = await probeAccelerator();
    tell(`${accelerator}: ${reason}`);
    const services = await composeLab({
      lab, program: systemQemuProgram, accelerator, onStep: tell });
    lab.note('code', codeStamp());
    mkdirSync(operatorDirectory, { recursive: true });
    copyFileSync(services.operatorConfigPath, join(operatorDirectory, 'operator.json'));
    lab.keep(true);
    process.removeListener('SIGINT', leave).removeListener('SIGTERM', leave);
    return { lab, services };
  } catch (error) {
    await lab.lower();
    throw error;
  }
}

/**
 * The lab of an earlier demo of this folder when all of it still runs, else a new one. Failure:
 * input/invalid when the lab of another folder's demo is up.
 */
export async function setStage(tell: Tell): Promise<Stage> {
  for (const id of demoLabs()) {
    const project = readLabState(id)?.notes['project'];
    const found = reopen(id);
    if (project !== projectRoot && typeof found !== 'string') {
      throw new CodedError('input/invalid', `the demo lab ${id} of ${String(project)} is up, and a `
        + 'machine has one: go on there, or remove it with `npm run demo -- --down`');
    }
    if (typeof found !== 'string') {
      tell(`lab ${id} is up from before`);
      return found;
    }
    tell(`lab ${id} ${found}: it is removed`);
    await lowerLab(id);
  }
  return await raiseStage(tell);
}
