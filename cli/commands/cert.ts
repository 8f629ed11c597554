/**
 * `novacron cert …`: the certificate authority of the installation, on the machine that holds it.
 */
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { CodedError } from '../../contracts/failures.ts';
import { identityUri } from '../../contracts/identity.ts';
import { createAuthority, defaultValidDays, issueCertificate, listCertificates, parseIdentityText,
  rotateCertificate } from '../../payloads/certificates.ts';
import type { IssuedFiles } from '../../payloads/certificates.ts';
import { createJoinToken, serveEnrolment } from '../../payloads/enrolment.ts';
import { createPayloadKeys, rotatePayloadKeys } from '../../payloads/payload-keys.ts';
import { createRevocationList, openRevocationList, revokeCertificates,
} from '../../payloads/revocation.ts';
import { readCount, readDurationMs, readEndpoint, readHostName } from '../context.ts';
import type { Context } from '../context.ts';
import { exitCodes } from '../exit-codes.ts';
import { table } from '../output.ts';
import type { CommandResult } from '../output.ts';

interface Place {
  readonly dir?: string;
}

/** Folder of the authority: --dir, else the configuration's. */
async function authorityDir(context: Context, { dir }: Place): Promise<string> {
  if (dir !== undefined) return resolve(context.world.workingDirectory, dir);
  const configured = (await context.backend.config()).certificatesDir;
  if (configured !== undefined) return configured;
  throw new CodedError('input/invalid',
    'the configuration names no certificatesDir; write --dir DIR on the machine of the authority');
}

const done = (fields: Record<string, unknown>, lines: readonly string[]): CommandResult =>
  ({ exitCode: exitCodes.ok, fields, lines });

const day = (ms: number): string => new Date(ms).toISOString().slice(0, 10);

function issuedResult(files: IssuedFiles, verb: string): CommandResult {
  const { certPath, keyPath, caPath, serial, identity, notAfterMs, addresses } = files;
  const name = `${identity.role}/${identity.name}`;
  return done({ identity: name, serial, notAfterMs, addresses, tls: { certPath, keyPath, caPath } },
    [`${verb} ${name}, serial ${serial}, until ${day(notAfterMs)}`, `  ${certPath}`,
      `  ${keyPath}`]);
}

async function init(context: Context, options: Place): Promise<CommandResult> {
  const dir = await authorityDir(context, options);
  const nowMs = context.world.now();
  const { fingerprint, caPath } = await createAuthority({ dir, nowMs });
  const revokedPath = await createRevocationList({ dir, nowMs });
  return done({ dir, fingerprint, caPath, revokedPath },
    [`authority in ${dir}`, `  fingerprint ${fingerprint}`]);
}

async function issue(context: Context, text: string, options: Place & {
  readonly address: readonly string[]; readonly days: string; readonly out?: string;
}): Promise<CommandResult> {
  const validDays = readCount({ text: options.days, option: '--days', min: 1, max: 825 });
  const dir = await authorityDir(context, options);
  const files = await issueCertificate({
    dir, identity: parseIdentityText(text), addresses: options.address, validDays,
    nowMs: context.world.now(),
    ...(options.out === undefined ? {}
      : { outDir: resolve(context.world.workingDirectory, options.out) }),
  });
  return issuedResult(files, 'issued');
}

async function rotate(
  context: Context, text: string, options: Place & { readonly out?: string },
): Promise<CommandResult> {
  const files = await rotateCertificate({
    dir: await authorityDir(context, options), identity: parseIdentityText(text),
    nowMs: context.world.now(),
    ...(options.out === undefined ? {}
      : { outDir: resolve(context.world.workingDirectory, options.out) }),
  });
  const result = issuedResult(files, 'rotated');
  return { ...result, lines: [...result.lines,
    '  the old one stays valid; revoke it by its serial once every process shows the new one'] };
}

async function revoke(context: Context, text: string, options: Place & { readonly reason: string }):
Promise<CommandResult> {
  const of = text.includes('/') ? { identity: text } : { serial: text };
  if ('identity' in of) parseIdentityText(text);
  const serials = await revokeCertificates({
    dir: await authorityDir(context, options), of, reason: options.reason,
      nowMs: context.world.now() });
  return done({ revoked: serials }, serials.length === 0 ? ['already revoked']
    : [...serials.map((serial) => `revoked ${serial}`),
      '  processes with this revoked.json refuse it within seconds;',
      '  copy the file to other machines']);
}

async function list(context: Context, options: Place): Promise<CommandResult> {
  const dir = await authorityDir(context, options);
  const nowMs = context.world.now();
  const path = await createRevocationList({ dir, nowMs });
  const revoked = openRevocationList({ path, caPath: join(dir, 'ca.pem') });
  const stateOf = (serial: string, notAfterMs: number): string =>
    revoked.isRevoked(serial) ? 'revoked' : notAfterMs < nowMs ? 'expired' : 'valid';
  const certificates = (await listCertificates(dir)).map((one) => ({
    serial: one.serial, identity: identityUri(one.identity).replace('novacron://', ''),
    state: stateOf(one.serial, one.notAfterMs), notAfterMs: one.notAfterMs,
    addresses: one.addresses }));
  return done({ certificates }, table(['IDENTITY', 'STATE', 'UNTIL', 'SERIAL', 'ADDRESSES'],
    certificates.map((one) => [one.identity, one.state, day(one.notAfterMs), one.serial,
      one.addresses.join(' ')])));
}

async function joinToken(context: Context, hostText: string, options: Place & {
  readonly endpoint: string; readonly address: readonly string[]; readonly valid: string;
}): Promise<CommandResult> {
  const host = readHostName(hostText);
  const { token, expiresAtMs } = await createJoinToken({
    dir: await authorityDir(context, options), host, addresses: options.address,
    endpoint: readEndpoint({ text: options.endpoint, option: '--endpoint' }),
    nowMs: context.world.now(),
    validMs: readDurationMs({ text: options.valid, option: '--valid', bareUnit: 's' }),
  });
  return done({ host, token, expiresAtMs }, [token]);
}

async function serve(
  context: Context, options: Place & { readonly listen: string },
): Promise<CommandResult> {
  const { world } = context;
  const dir = await authorityDir(context, options);
  const { address, port } = readEndpoint({ text: options.listen, option: '--listen' });
  const material = await issueCertificate({ dir, identity: { role: 'control', name: 'enrolment' },
    addresses: [], validDays: 1, nowMs: world.now() });
  let enrolledCount = 0;
  const server = await serveEnrolment({ dir, address, port, material, now: world.now,
    onEnrolled: () => {
      enrolledCount += 1;
      world.stderr.write('a host has joined\n');
    } });
  world.stderr.write(`enrolment endpoint on ${address}:${server.port}; Ctrl-C ends it\n`);
  await world.interrupted;
  await server.close();
  const joined = `${enrolledCount} ${enrolledCount === 1 ? 'host' : 'hosts'} joined`;
  return done({ address, port: server.port, enrolledCount }, [joined]);
}

async function payloadKeys(
  context: Context, file: string, { rotate: adds }: { readonly rotate: boolean },
): Promise<CommandResult> {
  const path = resolve(context.world.workingDirectory, file);
  const keyId = await (adds ? rotatePayloadKeys : createPayloadKeys)(path, context.world.now());
  return done({ path, keyId }, [`${keyId} encrypts`, `  ${path}`]);
}

const collect = (value: string, before: readonly string[]): readonly string[] => [...before, value];

export function addCertCommands(program: Command, context: Context): void {
  const { act } = context;
  const cert = program.command('cert').description(
    'certificates: issue, rotate, revoke, join tokens');
  const dir = ['--dir <dir>', 'folder of the authority'] as const;
  const address = ['--address <address>', 'IP address or DNS name in it; repeatable', collect,
    [] as readonly string[]] as const;
  act(cert.command('init').description('make the authority; again changes nothing').option(...dir),
    (options: Place) => init(context, options));
  act(cert.command('issue <identity>').description('new key and certificate for ROLE/NAME')
    .option(...dir).option(...address)
    .option('--days <count>', 'valid for so many days', String(defaultValidDays))
    .option('--out <dir>', 'where the files go; default the folder of the authority'),
  (text: string, options: Place & { address: string[]; days: string; out?: string }) =>
    issue(context, text, options));
  act(cert.command('rotate <identity>')
    .description(
      'new key and certificate, same identity and addresses; processes follow by themselves')
    .option(...dir).option('--out <dir>', 'where the files go'),
  (text: string, options: Place & { out?: string }) => rotate(context, text, options));
  act(cert.command('revoke <serial-or-identity>').description('take certificates back, at once')
    .option(...dir).option('--reason <text>', 'why', 'revoked by the operator'),
  (text: string, options: Place & { reason: string }) => revoke(context, text, options));
  act(cert.command('list').description('all certificates with their state').option(...dir),
    (options: Place) => list(context, options));
  act(cert.command('payload-keys <file>')
    .description('make the keys that encrypt what Temporal stores; an existing file is kept')
    .option('--rotate', 'add a key that encrypts from now on; older ones go on decrypting', false),
  (file: string, options: { rotate: boolean }) => payloadKeys(context, file, options));
  act(cert.command('join-token <host>').description('token that lets a new machine join, once')
    .requiredOption('--endpoint <address:port>', 'where it will reach `cert serve`')
    .option(...dir).option(...address).option('--valid <time>', 'at most 24h', '1h'),
  (name: string, options: Place & { endpoint: string; address: string[]; valid: string }) =>
    joinToken(context, name, options));
  act(cert.command('serve').description('enrolment endpoint for `host join`, until Ctrl-C')
    .requiredOption('--listen <address:port>', 'management address').option(...dir),
  (options: Place & { listen: string }) => serve(context, options));
}
