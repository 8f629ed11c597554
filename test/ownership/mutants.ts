/**
 * Seeded mistakes in the ledger's code, as text replacements. Each must be found by the rules, the
 * explorer or the crash tests; a replacement that no longer fits the code is an error as well.
 */
export interface Mutant {
  readonly name: string;
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

const ownership = 'runners/group/ownership';
const log = 'runners/group/ledger-log';

/** Mistakes in the decisions. */
export const decisionMutants: readonly Mutant[] = [
  {
    name: 'a start does not check the epoch', file: `${ownership}/tenure-events.ts`,
    find: "  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);\n  if (entry.phase !== 'owned' && entry.phase !== 'unsettled') {",
    replace: "  if (entry.phase !== 'owned' && entry.phase !== 'unsettled') {",
  },
  {
    name: 'settle with pages missing', file: `${ownership}/move-events.ts`,
    find: '(entry.quiesced?.missingPageCount ?? 0) > 0 && event.missingPageCount !== 0',
    replace: 'false',
  },
  {
    name: 'settle before the start', file: `${ownership}/move-events.ts`,
    find: "  if (entry.lastStarted !== entry.epoch) {\n    return refused(record, 'ownership/refused', 'the target has not started');\n  }\n",
    replace: '',
  },
  {
    name: 'commit without Ready', file: `${ownership}/move-events.ts`,
    find: "  if (entry.quiesced === null || entry.ready === null) {\n    const missing = entry.quiesced === null ? 'Quiesced' : 'Ready';\n    return refused(record, 'ownership/refused', `${missing} is not recorded`);\n  }\n  if (!sameTransfer(entry.quiesced, entry.ready)) {",
    replace: "  if (entry.ready && entry.quiesced && !sameTransfer(entry.quiesced, entry.ready)) {",
  },
  {
    name: 'commit without looking whether the records agree', file: `${ownership}/move-events.ts`,
    find: '  && a.ioSequence.every((count, disk) => count === b.ioSequence[disk]);',
    replace: ';',
  },
  {
    name: 'a start is accepted without becoming an entry', file: `${ownership}/tenure-events.ts`,
    find: "  const open = move !== null && move.end === null;\n",
    replace: "  if (entry.epoch > 0) return repeated(view, record);\n  const open = move !== null && move.end === null;\n",
  },
  {
    name: 'revert after the start', file: `${ownership}/move-events.ts`,
    find: "  if (entry.lastStarted === entry.epoch) {\n    return refused(record, 'ownership/refused', 'the target has started');\n  }\n",
    replace: '',
  },
  {
    name: 'failover to a host without the disk', file: `${ownership}/tenure-events.ts`,
    find: 'if (event.to !== entry.diskHolder && !outlivesItsHost(entry.spec)) {',
    replace: 'if (event.to === null) {',
  },
  {
    name: 'failover while the lease holds', file: `${ownership}/tenure-events.ts`,
    find: 'if (!fenced && !leaseOut) {', replace: 'if (fenced && leaseOut) {',
  },
  {
    name: 'a stale image may start', file: `${ownership}/tenure-events.ts`,
    find: 'return imageStamp === entry.lastStarted', replace: 'return imageStamp < 99',
  },
  {
    name: 'a cold start anywhere', file: `${ownership}/tenure-events.ts`,
    find: 'return entry.owner === entry.diskHolder', replace: 'return entry.owner !== null',
  },
  {
    name: 'the start of a commit is not asked for its epoch twice: another incarnation may start too',
    file: `${ownership}/tenure-events.ts`,
    find: 'return entry.startedBy === event.incarnation\n      ? repeated',
    replace: 'return entry.startedBy !== null\n      ? repeated',
  },
  {
    name: 'a repeated restart raises the epoch again', file: `${ownership}/tenure-events.ts`,
    find: "  if (madeBy(record, 'restart', event)) return repeated(view, record);\n", replace: '',
  },
  {
    name: 'a repeated commit is refused', file: `${ownership}/move-events.ts`,
    find: "if (move.decision === 'commit' && move.end !== 'reverted' && move.epoch === event.epoch) {",
    replace: "if (move.end === 'aborted') {",
  },
  {
    name: 'a repeated prepare begins anew', file: `${ownership}/move-events.ts`,
    find: "      ? repeated(view, record)\n      : refused(record, 'migration/open', 'that migration is open with",
    replace: "      ? decided(view, record, { vm: changedRecord(context, { quiesced: null, ready: null }) })\n      : refused(record, 'migration/open', 'that migration is open with",
  },
  {
    name: 'abort after the commit', file: `${ownership}/move-events.ts`,
    find: "  if (record.move !== move || entry.phase !== 'preparing') return notNow(context, move);\n  if (entry.epoch !== event.epoch) return wrongEpoch(record, event.epoch);\n  // Without",
    replace: '  // Without',
  },
  {
    name: 'anyone may commit', file: `${ownership}/move-events.ts`,
    find: "const isTarget = proposingHost(proposer) === move.target;\n  if (proposer.role !== 'control' && !isTarget) {\n    return wrongRole(record, proposer, event, `control or host/${move.target}`);\n  }\n  if (move.decision",
    replace: "const isTarget = proposingHost(proposer) === move.target;\n  if (move.decision",
  },
  {
    name: 'any host may report a start', file: `${ownership}/tenure-events.ts`,
    find: "const { entry, move } = record;\n  if (proposingHost(proposer) !== entry.owner) {",
    replace: "const { entry, move } = record;\n  if (proposingHost(proposer) === null) {",
  },
  {
    name: 'signatures are not looked at', file: `${ownership}/move-events.ts`,
    find: 'if (!checks.transferRecord(event.record, publicKeyPem)) {',
    replace: 'if (checks === null) {',
  },
  {
    name: 'the target commits without consent or patience', file: `${ownership}/move-events.ts`,
    find: 'if (isTarget && !entry.commitDelegated && waitedMs < timing.blackoutSelfDecisionMs) {',
    replace: 'if (isTarget && waitedMs < 0) {',
  },
  {
    name: 'a start while preparing', file: `${ownership}/tenure-events.ts`,
    find: "if (entry.phase !== 'owned' && entry.phase !== 'unsettled') {\n    return refused(record, 'ownership/refused', `nothing starts",
    replace: "if (entry.phase === 'absent') {\n    return refused(record, 'ownership/refused', `nothing starts",
  },
  {
    name: 'a start does not move the disk holder', file: `${ownership}/tenure-events.ts`,
    find: 'diskHolder: entry.owner ?? entry.diskHolder,', replace: 'diskHolder: entry.diskHolder,',
  },
  {
    name: 'a declined start stays recorded', file: `${ownership}/move-events.ts`,
    find: '{ lastStarted: entry.startedBefore, startedBy: null, diskHolder: entry.previous },',
    replace: '{ startedBy: null, diskHolder: entry.previous },',
  },
  {
    name: 'a revert keeps the epoch', file: `${ownership}/move-events.ts`,
    find: "const { epoch, rest } = nextEpoch(record, 'revert');",
    replace: "const { rest } = nextEpoch(record, 'revert');\n  const { epoch } = entry;",
  },
  {
    name: 'an ended migration opens again', file: `${ownership}/move-events.ts`,
    find: 'if (known !== null) {\n    if (known.end !== null) {',
    replace: 'if (known !== null && known.end === null) {\n    if (known.end !== null) {',
  },
  {
    name: 'the tombstone forgets the epoch', file: `${ownership}/tenure-events.ts`,
    find: 'const fromEpoch = old?.entry.epoch ?? 0;', replace: 'const fromEpoch = 0;',
  },
  {
    name: 'a lease runs out early', file: `${ownership}/leases.ts`,
    find: '  ttlMs * (1 + timing.leaseClockRho) + timing.leaseMarginMs;',
    replace: '  ttlMs;',
  },
];

/** Mistakes in the log and in the order of answers. */
export const logMutants: readonly Mutant[] = [
  {
    name: 'the sync is lost', file: `${log}/durable-log.ts`,
    find: '      await this.file.sync();\n    } catch (error) {',
    replace: '    } catch (error) {',
  },
  {
    name: 'a full disk leaves half a record', file: `${log}/durable-log.ts`,
    find: '        await this.file.truncate(this.sizeBytes);\n      } catch (second)',
    replace: '      } catch (second)',
  },
  {
    name: 'a torn tail is kept', file: `${log}/durable-log.ts`,
    find: '      await file.truncate(tail.validBytes);\n', replace: '',
  },
  {
    name: 'checksums are not compared', file: `${log}/log-format.ts`,
    find: 'return crc === bytes.readUInt32BE(offset + 4) ? payload : null;',
    replace: 'return crc >= 0 ? payload : null;',
  },
  {
    name: 'damage in the middle counts as a torn tail', file: `${log}/log-format.ts`,
    find: 'return end(next === null\n        ? null', replace: 'return end(next !== -1\n        ? null',
  },
  {
    name: 'the checkpoint is written after the old segment is gone', file: `${log}/durable-log.ts`,
    find: '      await this.storage.writeWhole(checkpoint, encodeCheckpoint(stored));\n',
    replace: '',
  },
];
