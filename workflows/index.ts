/** Every workflow of the control worker; the bundle is made from this file. */
export { createVm } from './create-vm.ts';
export { deleteVm } from './delete-vm.ts';
export { evacuateHost } from './evacuate-host.ts';
export { failoverVm } from './failover-vm.ts';
export { finishMigration } from './finish-migration.ts';
export { migrateVm } from './migrate-vm.ts';
export { resolveVm } from './resolve-vm.ts';
export { startVm } from './start-vm.ts';
export { stopVm } from './stop-vm.ts';
export { sweepMigrations } from './sweep-migrations.ts';
