import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  LabProcess, cpuSecondsOf, endProcesses, findReadyLine, processesOfLab,
} from './processes.ts';
import { isAlive } from './state.ts';

describe('findReadyLine', () => {
  it('finds the line by its msg and not by a word in another field', () => {
    const log = '{"msg":"not yet","state":"ready"}\n{"msg":"ready","port":7}\n';
    expect(findReadyLine(log)).toEqual({ msg: 'ready', port: 7 });
  });
  it('is patient with a line that is still being written', () => {
    expect(findReadyLine('{"level":30,"msg":"ready"')).toBeNull();
  });
});

describe('LabProcess', () => {
  let directory = '';
  const started: LabProcess[] = [];
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'nc-processes-'));
  });
  afterEach(async () => {
    await endProcesses(started.splice(0).map((child) => child.mark), 0);
    rmSync(directory, { recursive: true, force: true });
  });
  const run = async (script: string, ready: 'line' | 'none' = 'line'): Promise<LabProcess> => {
    const child = await LabProcess.start(
      { name: 'x', namespace: null, command: [process.execPath, '-e', script], ready },
      { labId: 'ncffff', logPath: join(directory, 'x.log') },
    );
    started.push(child);
    return child;
  };

  it('waits for the ready line and ends on request', async () => {
    const child = await run(
      'console.log(JSON.stringify({msg:"ready",port:9}));setInterval(()=>0,99)');
    expect(await child.whenReady()).toMatchObject({ port: 9 });
    expect(processesOfLab('ncffff').map((mark) => mark.pid)).toContain(child.pid);
    await child.stop();
    expect(child.isRunning()).toBe(false);
  });

  it('says what a process said that ended before it was ready', async () => {
    const child = await run('console.error("no certificate");process.exit(3)');
    await expect(child.whenReady()).rejects.toThrow(/no certificate/);
  });

  it('ends a process that ignores SIGTERM and stands still', async () => {
    const child = await run(
      'process.on("SIGTERM",()=>0);console.log(JSON.stringify({msg:"ready"}));'
      + 'setInterval(()=>0,99)');
    await child.whenReady();
    child.pause();
    await endProcesses([child.mark], 200);
    expect(isAlive(child.mark)).toBe(false);
  });

  it('never signals another process that got the same pid', async () => {
    const child = await run('console.log(JSON.stringify({msg:"ready"}));setInterval(()=>0,99)');
    await child.whenReady();
    await endProcesses([{ ...child.mark, startTicks: child.mark.startTicks - 1 }], 100);
    expect(child.isRunning()).toBe(true);
  });

  it('counts CPU time', async () => {
    const child = await run(
      'while(process.cpuUsage().user<300000);console.log(JSON.stringify({msg:"ready"}));'
      + 'setInterval(()=>0,99)');
    await child.whenReady();
    expect(cpuSecondsOf(child.pid).hostSeconds).toBeGreaterThan(0.1);
    expect(cpuSecondsOf(child.pid).guestSeconds).toBe(0);
  });
});
