/** What an update does to the parts of a session that move bytes; cancel is the move's own matter. */
import type { SessionCommand } from '../../../contracts/migration.ts';
import { bytesPerSecond, millis } from '../../../contracts/units.ts';
import type { SourceSession } from '../../data-plane/sessions.ts';
import type { SourceDisks } from './ports.ts';

/** Takes effect before it resolves. Failure: input/invalid (post-copy without consent). */
export async function applyCommand(
  command: SessionCommand,
  parts: { readonly session: SourceSession; readonly disks: SourceDisks },
): Promise<void> {
  const { session, disks } = parts;
  switch (command.kind) {
    case 'pause':
      return session.pause();
    case 'resume':
      return session.resume();
    case 'set-bandwidth':
      session.setBandwidth(bytesPerSecond(command.bandwidthBytesPerSecond));
      return disks.setBandwidth(command.bandwidthBytesPerSecond);
    case 'set-downtime-budget':
      return session.setDowntimeBudget(millis(command.downtimeBudgetMs));
    case 'post-copy-now':
      return session.postCopyNow();
    case 'cancel':
      return undefined;
  }
}
