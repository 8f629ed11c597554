/** The lab of one benchmark, and where its lines go. The lab goes with it, whatever happens. */
import { appendFileSync } from 'node:fs';
import { CodedError } from '../../contracts/failures.ts';
import { imageDirectory } from '../compose.ts';
import { placeGuestImage, readQemuProgram, requireReadableForVms } from '../guest-image.ts';
import type { GuestImage, QemuProgram } from '../guest-image.ts';
import { Lab } from '../lab.ts';
import { DirectPlant } from './engines/direct.ts';
import type { DirectPlantOptions } from './engines/direct.ts';

/** What a benchmark runs in. */
export interface Surroundings {
  readonly lab: Lab;
  readonly image: GuestImage;
  readonly program: QemuProgram;
  readonly tell: (line: string) => void;
  /** Aborted by an interrupt: nothing new is begun then. */
  readonly interrupted: AbortSignal;
}

/** A line for people, beside the results. */
export const tell = (line: string): void => void process.stderr.write(`${line}\n`);

/** Where the results go. */
export interface Output {
  /** One JSON line each; `text` is what people get without --json. */
  readonly line: (record: object, text: string) => void;
}

/** Lines on stdout; JSON lines are added to the file `out` as well, whatever is shown. */
export function openOutput(flags: { readonly json: boolean; readonly out?: string }): Output {
  const { out } = flags;
  if (out !== undefined) {
    try {
      // Now, not after minutes of measuring.
      appendFileSync(out, '');
    } catch (error) {
      throw new CodedError('input/invalid', `--out ${out}: ${(error as Error).message}`);
    }
  }
  return {
    line: (record, text) => {
      const json = `${JSON.stringify(record)}\n`;
      process.stdout.write(flags.json ? json : `${text}\n`);
      if (out !== undefined) appendFileSync(out, json);
    },
  };
}

/** Raises a lab for `work`; an interrupt takes it down and ends the process with 130. */
export async function inLab(
  flags: { readonly guest: string; readonly qemu: string },
  work: (surroundings: Surroundings) => Promise<void>,
): Promise<void> {
  const program = readQemuProgram(flags.qemu);
  requireReadableForVms(program);
  const interrupt = new AbortController();
  // Before the lab is made, so that no moment is left in which an interrupt would leave it behind.
  let lowering: Promise<void> | null = null;
  let lab: Lab | null = null;
  const lower = async (): Promise<void> => await (lowering ??= lab?.lower() ?? Promise.resolve());
  const leave = (): void => {
    if (interrupt.signal.aborted) return;
    interrupt.abort();
    tell('bench: interrupted, taking the lab down');
    // While the lab is being made, its maker takes it down below.
    if (lab !== null) void lower().finally(() => process.exit(130));
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, leave);
  lab = await Lab.raise({ hostCount: 2 });
  try {
    interrupt.signal.throwIfAborted();
    await work({
      lab, program, tell, image: placeGuestImage(imageDirectory(lab), flags.guest),
      interrupted: interrupt.signal,
    });
  } catch (error) {
    if (!interrupt.signal.aborted) throw error;
  } finally {
    await lower();
  }
  if (interrupt.signal.aborted) process.exit(130);
}

/** Composes the product in the lab. */
export async function raisePlant(
  surroundings: Surroundings, policy: DirectPlantOptions['policy'],
): Promise<DirectPlant> {
  surroundings.tell('composing the product: Temporal, ledger, control worker, two host runners');
  return await DirectPlant.raise({ ...surroundings, policy });
}
