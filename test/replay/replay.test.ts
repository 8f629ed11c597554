/** Every recorded history runs through the present workflows without a different command. */
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from '@temporalio/worker';
import proto from '@temporalio/proto';
import { beforeAll, describe, expect, it } from 'vitest';
import { failureConverterPath } from '../../payloads/temporal-connection.ts';
import { workflowBundle } from '../../runners/control/workflow-bundle.ts';

const { History } = proto.temporal.api.history.v1;
/** The part of a history that this test changes. */
interface Recorded {
  readonly workflowId: string;
  readonly history: { readonly events: readonly {
    activityTaskScheduledEventAttributes?: { activityType?: { name?: string } };
  }[] };
}
const folder = new URL('histories/', import.meta.url);
const names = readdirSync(folder).filter((name) => name.endsWith('.history'));
/** First line: workflow id; second: the history's protobuf in base64. */
function read(name: string): Recorded {
  const [workflowId = '', base64 = ''] =
    readFileSync(fileURLToPath(new URL(name, folder)), 'utf8').split('\n');
  const history = History.decode(Buffer.from(base64, 'base64'));
  return { workflowId, history: history as unknown as Recorded['history'] };
}

describe('recorded histories', () => {
  let bundle: { readonly code: string };
  beforeAll(async () => { bundle = await workflowBundle(); }, 60_000);
  const replay = ({ workflowId, history }: Recorded, workflowBundleOf = bundle): Promise<void> =>
    Worker.runReplayHistory(
      { workflowBundle: workflowBundleOf, dataConverter: { failureConverterPath } },
      history, workflowId,
    );

  it('are there', () => expect(names.length).toBeGreaterThanOrEqual(8));

  it.each(names)('%s', async (name) => { await replay(read(name)); });

  it('notice a workflow that does something else', async () => {
    const recorded = read('move-completed.history');
    const scheduled = recorded.history.events
      .find(({ activityTaskScheduledEventAttributes: attributes }) => attributes);
    scheduled!.activityTaskScheduledEventAttributes!.activityType = { name: 'somethingElse' };
    await expect(replay(recorded)).rejects.toThrow(/[Nn]on-?determinis/);
  });
});
