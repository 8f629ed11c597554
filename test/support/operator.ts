/** The `novacron` command as an operator of a stage uses it. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { projectRoot } from '../../lab/guest-image.ts';
import { labVariable } from '../../lab/processes.ts';
import type { MoveStage } from './move-stage.ts';

/** `novacron …`; answers what it prints. */
export const askOperator = (stage: MoveStage, ...args: string[]): Promise<string> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [join(projectRoot, 'cli/main.ts'), ...args], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, NOVACRON_CONFIG: stage.services.operatorConfigPath,
        [labVariable]: stage.lab.id },
    });
    let out = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
    child.once('error', reject);
    child.once('close', () => resolve(out));
  });
