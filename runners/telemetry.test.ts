/** Logs without secrets, metrics, health and garbage on the port. */
import { connect } from 'node:net';
import { Gauge } from 'prom-client';
import { afterEach, describe, expect, it } from 'vitest';
import { createLogger, createMetrics, serveTelemetry } from './telemetry.ts';
import type { HealthCheck, TelemetryServer } from './telemetry.ts';

let server: TelemetryServer | null = null;
afterEach(async () => {
  await server?.close();
  server = null;
});
async function start(checks: Record<string, HealthCheck>): Promise<string> {
  const registry = createMetrics({ process: 'runner', name: 'h1' });
  new Gauge({ name: 'novacron_vms', help: 'VMs here', registers: [registry] }).set(2);
  server = await serveTelemetry({ address: '127.0.0.1', port: 0, registry, checks,
    logger: createLogger({ process: 'runner', name: 'h1', level: 'silent' }),
    extraMetrics: () => '# from elsewhere\n' });
  return `http://127.0.0.1:${server.port}`;
}

describe('logger', () => {
  it('hides secrets at several depths and keeps the rest', () => {
    const lines: string[] = [];
    const logger = createLogger({ process: 'runner', name: 'h1',
      destination: { write: (line: string) => { lines.push(line); } } });
    logger.info({ secret: 'S1', peer: { token: 'S2', name: 'h2', tls: { key: 'S3' } } }, 'joined');
    expect(lines[0]).not.toMatch(/S[123]/);
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      level: 'info', process: 'runner', name: 'h1', msg: 'joined', peer: { name: 'h2' } });
  });
});

describe('telemetry server', () => {
  it('serves figures of the process and of ours', async () => {
    const base = await start({});
    const text = await (await fetch(`${base}/metrics`)).text();
    expect(text).toMatch(/novacron_vms\{process="runner",name="h1"\} 2/);
    expect(text).toMatch(/novacron_process_resident_memory_bytes/);
    expect(text).toMatch(/from elsewhere/);
  });
  it('answers 503 with the failing checks by name', async () => {
    const base = await start({ ledger: () => { throw new Error('no answer from 198.18.0.2'); },
      temporal: async () => {} });
    const response = await fetch(`${base}/healthz`);
    expect(response.status).toBe(503);
    expect(await response.json()).toEqual({ version: 1, healthy: false,
      checks: { ledger: 'no answer from 198.18.0.2', temporal: 'ok' } });
  });
  it('does not wait for a check that hangs', async () => {
    const base = await start({ disk: () => new Promise<void>(() => {}) });
    const report = await (await fetch(`${base}/healthz`)).json() as { checks: { disk: string } };
    expect(report.checks.disk).toMatch(/no answer in/);
  });
  it('survives garbage, other methods and unknown paths', async () => {
    const base = await start({});
    const socket = connect(Number(new URL(base).port), '127.0.0.1');
    socket.on('error', () => {});
    socket.end(Buffer.from([0, 255, 13, 10, 7, 0x16, 3, 1]));
    await new Promise((resolve) => { socket.on('close', resolve); socket.resume(); });
    expect((await fetch(`${base}/metrics`, { method: 'POST', body: 'x' })).status).toBe(405);
    expect((await fetch(`${base}/etc/passwd`)).status).toBe(404);
  });
});
