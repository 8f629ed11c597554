/** Rights only: there is no KVM where this was written, so no guest ran under it with the group. */
import { expect, test } from 'vitest';
import { incarnation, vmName } from '../../contracts/identity.ts';
import { deviceGroup, groupFor } from './device-group.ts';
import { guardArguments } from './guard-process.ts';
import { vmPaths } from './vm-directory.ts';

test.each([
  ['open to all', 0o020666, 108, null],
  ['open to its group', 0o020660, 108, 108],
  ['open to its group, readable by all', 0o020664, 108, 108],
  ['group may only read', 0o020640, 108, 'none'],
  ['root alone', 0o020600, 0, 'none'],
  ["the group is root's", 0o020660, 0, 'none'],
] as const)('a device that is %s', (_what, mode, gid, expected) => {
  expect(groupFor({ mode, gid })).toBe(expected);
});

test('of this host: /dev/null is everybody\'s, a missing device is said by name', async () => {
  expect(await deviceGroup('/dev/null')).toBeNull();
  await expect(deviceGroup('/dev/novacron-none')).rejects.toMatchObject({
    code: 'vm/start-failed', detail: expect.stringContaining('/dev/novacron-none') as unknown,
  });
});

test('the guard gives the VMM that group and no other', () => {
  const options = {
    paths: vmPaths('/vms', vmName('web')),
    identity: { uid: 200_001, gid: 200_001 } as Parameters<typeof guardArguments>[0]['identity'],
    incarnation: incarnation('0'.repeat(32)), failover: 'automatic' as const, argv: ['qemu'],
  };
  const groupOf = (deviceGroupId: number | null): readonly string[] => {
    const words = guardArguments({ ...options, deviceGroup: deviceGroupId });
    expect(words.slice(-2)).toEqual(['--', 'qemu']);
    return words.filter((_, index) => words[index - 1] === '--group');
  };
  expect(groupOf(108)).toEqual(['108']);
  expect(groupOf(null)).toEqual([]);
});
