/** The ledger's table, rule by rule, on the production code. */
import { describe, test } from 'vitest';
import { decide } from '../../runners/group/ownership/decide.ts';
import { rules } from './rules.ts';

describe('the ledger decides', () => {
  for (const [name, check] of Object.entries(rules)) test(name, () => check(decide));
});
