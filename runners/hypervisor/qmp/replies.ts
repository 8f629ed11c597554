/** Shapes of the QMP answers that this project uses; unknown fields are let through unread. */
import { z } from 'zod';

const size = z.number().int().min(0);

export const statusReply = z.object({ status: z.string(), running: z.boolean() });
export const blockJobsReply = z.array(
  z.object({
    device: z.string(),
    type: z.string(),
    status: z.string(),
    len: size,
    offset: size,
    ready: z.boolean(),
    busy: z.boolean(),
    paused: z.boolean(),
    'io-status': z.string(),
    /** Since QEMU 8.2, mirror only. */
    'actively-synced': z.boolean().optional(),
    error: z.string().optional(),
  }),
);
export const blockNodesReply = z.array(
  z.object({
    'node-name': z.string(),
    drv: z.string(),
    file: z.string(),
    ro: z.boolean(),
    cache: z.object({ direct: z.boolean(), writeback: z.boolean(), 'no-flush': z.boolean() }),
    image: z.object({
      filename: z.string(),
      'virtual-size': size,
      'actual-size': size.optional(),
      'backing-filename': z.string().optional(),
    }),
    'dirty-bitmaps': z.array(z.object({ count: size, recording: z.boolean() })).optional(),
  }),
);
export const migrateReply = z.object({
  status: z.string().optional(),
  'error-desc': z.string().optional(),
  ram: z.object({ transferred: size }).optional(),
});
export const memoryBackendsReply = z.array(
  z.object({ id: z.string().optional(), size, share: z.boolean() }),
);
export const cpusReply = z.array(
  z.object({ 'cpu-index': z.number().int(), 'qom-path': z.string() }),
);
export const qomListReply = z.array(z.object({ name: z.string(), type: z.string() }));
export const textReply = z.string();
export const flagReply = z.boolean();
export const pciReply = z.array(
  z.object({ devices: z.array(z.object({ qdev_id: z.string(), slot: z.number().int() })) }),
);
export const rxFilterReply = z.array(z.object({ name: z.string(), 'main-mac': z.string() }));
export const cpuExpansionReply = z.object({
  model: z.object({ name: z.string(), props: z.record(z.string(), z.unknown()).optional() }),
});
export const exportsReply = z.array(z.object({ id: z.string(), 'shutting-down': z.boolean() }));
