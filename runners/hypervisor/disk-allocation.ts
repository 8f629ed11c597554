/** How much of its disks' images a VMM holds; what it is used for is left to the caller. */
import { diskNode } from './command-line.ts';
import type { QmpClient } from './qmp/client.ts';
import { blockNodesReply } from './qmp/replies.ts';

/**
 * What the images of these disks hold, holes left out; null where the VMM does not say. For
 * estimates: a compressed or encrypted image takes another number of bytes on the link.
 */
export async function allocatedBytes(
  qmp: QmpClient, disks: readonly string[],
): Promise<number | null> {
  const nodes = await qmp.execute('query-named-block-nodes', {
    arguments: { flat: true }, reply: blockNodesReply,
  });
  let sum = 0;
  for (const disk of disks) {
    const node = nodes.find((candidate) => candidate['node-name'] === diskNode(disk));
    const held = node?.image['actual-size'];
    if (held === undefined) return null;
    sum += Math.min(held, node?.image['virtual-size'] ?? held);
  }
  return sum;
}
