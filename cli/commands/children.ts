/**
 * `novacron demo|bench|faults|soak|doctor`: programs of the project that run as processes of their own.
 */
import type { Command } from 'commander';
import type { Context } from '../context.ts';

/** Script of each, from the project's folder. They print their own answers, `--json` included. */
export const childPrograms = {
  demo: { script: 'lab/demo/main.ts',
    about: 'a lab on this machine, a VM with a database, and its move; --down removes it' },
  bench: { script: 'lab/bench/main.ts',
    about: 'moves by this engine and by QEMU\'s own, interleaved, measured outside' },
  faults: { script: 'lab/faults/main.ts',
    about: 'moves with a fault at every moment of them, judged outside' },
  soak: { script: 'lab/soak/main.ts',
    about: 'guests that move back and forth for minutes, with faults; what grows meanwhile' },
  doctor: { script: 'infra/doctor/main.ts',
    about: 'what this machine can do, by probing, and what follows' },
} as const;

/**
 * Hands everything after the name to the program; its exit code is ours. `onExit` gets the code,
 * since such a program prints its last line itself.
 */
export function addChildCommands(
  { program, context, onExit }: {
    readonly program: Command; readonly context: Context; readonly onExit: (code: number) => void;
  },
): void {
  for (const [name, { script, about }] of Object.entries(childPrograms)) {
    program.command(`${name} [arguments...]`)
      .description(`${about} (\`novacron ${name} --help\` lists its options)`)
      .allowUnknownOption().helpOption(false)
      .action(async (argv: string[]) => {
        const given = context.json() && !argv.includes('--json') ? [...argv, '--json'] : argv;
        onExit(await context.world.runProgram({ script, argv: given }));
      });
  }
}
