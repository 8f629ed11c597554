/**
 * `unit` runs beside itself, `e2e` alone, because it measures and owns the machine; `cluster` is
 * the production profile (`npm run test:cluster`), `long` what takes minutes (`npm run test:long`),
 * `models` TLC over docs/models (`npm run models`).
 */
import { defineConfig } from 'vitest/config';

const exclude = ['**/node_modules/**', 'build/**', 'native/**', '.cache/**'];
/** These start servers, VMs or network namespaces. */
const heavy = ['test/e2e/**/*.test.ts', 'test/workflows/**/*.test.ts', 'test/cluster/**/*.test.ts',
  'test/long/**/*.test.ts', 'test/models/**/*.test.ts'];

// vitest reads its configuration as a default export.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit', include: ['**/*.test.ts'], exclude: [...exclude, ...heavy],
          testTimeout: 20_000, hookTimeout: 30_000,
        },
      },
      {
        test: {
          name: 'e2e', include: heavy,
          exclude: [...exclude, 'test/cluster/**', 'test/long/**', 'test/models/**'],
          fileParallelism: false,
          // A guest boots in 3 s here and in a minute on a busy machine; a move may take as long.
          testTimeout: 240_000, hookTimeout: 300_000,
        },
      },
      {
        test: {
          name: 'cluster', include: ['test/cluster/**/*.test.ts'], exclude, fileParallelism: false,
          testTimeout: 300_000, hookTimeout: 300_000,
        },
      },
      {
        test: {
          name: 'models', include: ['test/models/**/*.test.ts'], exclude, fileParallelism: false,
          testTimeout: 1_200_000, hookTimeout: 300_000,
        },
      },
      {
        test: {
          name: 'long', include: ['test/long/**/*.test.ts'], exclude, fileParallelism: false,
          testTimeout: 500_000, hookTimeout: 300_000,
        },
      },
    ],
  },
});
