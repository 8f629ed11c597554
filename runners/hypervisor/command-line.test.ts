import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { vmName } from '../../contracts/identity.ts';
import { vmSpec, type VmSpec } from '../../contracts/runner.ts';
import { buildArguments, type LaunchPlan } from './command-line.ts';
import { vmPaths } from './vm-directory.ts';

const spec: VmSpec = {
  version: 1,
  name: vmName('web'),
  vcpuCount: 2,
  memoryBytes: 1 << 30,
  machineType: 'pc-q35-7.2',
  cpuModel: 'qemu64',
  disks: [
    { name: 'root', format: 'qcow2', sizeBytes: 1 << 30, sourceImage: null, volume: 'local' },
  ],
  nics: [
    { name: 'eth0', macAddress: '52:54:00:12:34:56', address: '198.18.1.10/24', segment: 'lab' },
  ],
  boot: { kind: 'disk', firmware: 'uefi', cloudInitUserData: '#cloud-config\n' },
  failover: 'none',
};
const plan = (changes: Partial<LaunchPlan> = {}): LaunchPlan => ({
  spec,
  paths: vmPaths('/var/lib/vms', spec.name),
  memoryPath: '/dev/shm/web.ram',
  tapNames: ['nv0123456789ab'],
  accelerator: 'tcg',
  incoming: false,
  firmware: { uefiCode: '/fw/code.fd', uefiVars: '/fw/vars.fd' },
  ...changes,
});
const jsonOptions = (argv: readonly string[]): readonly Record<string, unknown>[] =>
  argv
    .filter((word) => word.startsWith('{'))
    .map((word) => JSON.parse(word) as Record<string, unknown>);

describe('the command line', () => {
  test('is hardened, paused, and keeps guest memory in a shared named file', () => {
    const argv = buildArguments(plan());
    expect(argv).toContain('-S');
    expect(argv).toContain('-nodefaults');
    expect(argv[argv.indexOf('-sandbox') + 1]).toBe(
      'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
    );
    expect(jsonOptions(argv)).toContainEqual({
      'qom-type': 'memory-backend-file',
      id: 'ram0',
      'mem-path': '/dev/shm/web.ram',
      size: 1 << 30,
      share: true,
    });
    for (const option of jsonOptions(argv)) {
      if (option['driver'] !== 'file' || option['read-only'] === true) continue;
      if (String(option['node-name']).startsWith('file-')) {
        expect(option).toMatchObject({ aio: 'threads', cache: { direct: false } });
      }
    }
    expect(argv).not.toContain('-incoming');
    expect(buildArguments(plan({ accelerator: 'kvm' }))).toContain('kvm');
  });

  test('differs at the target only in waiting', () => {
    const cold = buildArguments(plan());
    expect(buildArguments(plan({ incoming: true }))).toEqual([...cold, '-incoming', 'defer']);
  });
});

/** Text that would hurt in a shell, a comma list, a path or JSON. */
const hostile = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.constantFrom(
    ',share=off',
    '"}',
    "';reboot;'",
    '$(reboot)',
    '../../etc',
    '-daemonize',
    'a\nb',
    'x,,y',
    '\0',
    '/images/../../etc/shadow',
    'none -device vfio-pci',
    '${IFS}',
    '{"driver":"host_device"}',
  ),
);
const field = <T>(good: T): fc.Arbitrary<unknown> =>
  fc.oneof(
    { weight: 12, arbitrary: fc.constant<unknown>(good) },
    hostile,
    fc.constantFrom<unknown>(null, -1, 1e300, {}, []),
  );

describe('a spec from outside', () => {
  test('either is refused or makes a command line of the same words', () => {
    const reference = buildArguments(plan());
    let accepted = 0;
    fc.assert(
      fc.property(
        fc.record({
          version: fc.constant(1),
          name: field('web'),
          vcpuCount: field(2),
          memoryBytes: field(1 << 30),
          machineType: field('pc-q35-7.2'),
          cpuModel: field('qemu64'),
          disks: fc.tuple(
            fc.record({
              name: field('root'),
              format: field('qcow2'),
              sizeBytes: field(1 << 30),
              sourceImage: field(null),
              volume: field('local'),
            }),
          ),
          nics: fc.tuple(
            fc.record({
              name: field('eth0'),
              macAddress: field('52:54:00:12:34:56'),
              address: field('198.18.1.10/24'),
              segment: field('lab'),
            }),
          ),
          boot: fc.constant(spec.boot),
          failover: field('none'),
        }),
        (input) => {
          const parsed = vmSpec.safeParse(input);
          if (!parsed.success) return;
          accepted += 1;
          const argv = buildArguments(
            plan({ spec: parsed.data, paths: vmPaths('/var/lib/vms', parsed.data.name) }),
          );
          expect(argv).toHaveLength(reference.length);
          // The options are the same words at the same places; only values may differ.
          argv.forEach((word, index) => {
            if (reference[index]?.startsWith('-') === true) expect(word).toBe(reference[index]);
            else expect(word.startsWith('-')).toBe(false);
            // eslint-disable-next-line no-control-regex
            expect(word).not.toMatch(/[\x00-\x1f]/);
          });
          expect(
            argv.filter((word) => word.includes('share=off') || word.includes('vfio')),
          ).toEqual([]);
        },
      ),
      { numRuns: 3000 },
    );
    expect(accepted).toBeGreaterThan(100);
  });

  test('a kernel command line stays one word', () => {
    fc.assert(
      fc.property(hostile, (commandLine) => {
        const parsed = vmSpec.safeParse({
          ...spec,
          boot: { kind: 'kernel', kernel: '/images/k', initrd: null, commandLine },
        });
        if (!parsed.success) return;
        const argv = buildArguments(plan({ spec: parsed.data }));
        expect(argv[argv.indexOf('-append') + 1]).toBe(commandLine);
      }),
    );
  });
});
