/** The estimate as a pure function: whole disks and memories are played, errors are printed. */
import { describe, expect, test } from 'vitest';
import {
  closingMs, diskBytesLeft, etaOf, nextDiskPace, type DiskPace, type EtaLook,
} from './eta.ts';

const bytes = (value: number): EtaLook['memory']['bytesLeft'] =>
  value as EtaLook['memory']['bytesLeft'];
const millis = (value: number): NonNullable<EtaLook['memory']['etaMs']> =>
  value as NonNullable<EtaLook['memory']['etaMs']>;

/** A generator of 0 to 1 that repeats by its seed. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

interface Scene {
  readonly name: string;
  readonly diskSize: number;
  readonly allocated: number | null;
  /** Disk bytes that the guest writes again a second, while they are copied. */
  readonly rewritten: number;
  readonly memory: number;
  readonly rate: number;
  /** The rate is a cap by request, which a job counts its holes against. */
  readonly capped?: boolean;
}

/** Errors of the estimate, in parts of the whole move, at looks after a fifth of it. */
function errorsOf(scene: Scene, seed: number): number[] {
  const { diskSize, allocated, rewritten, memory, rate, capped = false } = scene;
  const random = randomOf(seed);
  const held = allocated ?? diskSize;
  const diskS = (capped ? diskSize : held) / (rate - rewritten);
  const totalMs = (diskS + memory / rate) * 1e3 + closingMs;
  const errors: number[] = [];
  let pace: DiskPace | null = null;
  for (let nowMs = 0; nowMs < totalMs - closingMs; nowMs += 500 + random() * 900) {
    const went = rate * nowMs / 1e3 * (0.97 + random() * 0.06);
    const holes = diskSize - held;
    const carried = Math.min(held + rewritten * diskS, Math.max(0, capped ? went - holes : went));
    const isDisk = nowMs < diskS * 1e3;
    const total = diskSize + rewritten * Math.min(nowMs / 1e3, diskS);
    // The job runs over its holes at once: they all lie at the beginning here.
    const bytesDone = Math.min(total, capped ? went : holes + carried);
    if (isDisk) pace = nextDiskPace(pace, { nowMs, carried, done: bytesDone, paused: false });
    const eta = etaOf({
      phase: isDisk ? 'disk' : 'memory',
      paused: false,
      memory: {
        etaMs: isDisk ? null : millis(Math.max(0, totalMs - closingMs - nowMs)),
        bytesLeft: bytes(memory), diskBytes: bytes(carried),
      },
      disks: {
        bytesTotal: total, bytesDone, bytesAtStart: diskSize, bytesAllocated: allocated,
        bytesPerSecondMax: capped ? rate : 0, mode: 'background', said: '',
      },
    }, pace);
    if (nowMs >= totalMs * 0.2) {
      errors.push(eta === null ? Infinity : (nowMs + eta - totalMs) / totalMs);
    }
  }
  return errors;
}

describe('the ETA', () => {
  test.each<Scene>([
    { name: 'a full disk', diskSize: 1e9, allocated: 1e9, rewritten: 0, memory: 2e8, rate: 5e7 },
    { name: 'mostly holes', diskSize: 1e10, allocated: 4e8, rewritten: 0, memory: 2e8, rate: 5e7 },
    { name: 'mostly holes under a cap', diskSize: 3e8, allocated: 1e7, rewritten: 0, memory: 2e8,
      rate: 2e7, capped: true },
    { name: 'a full disk under a cap', diskSize: 3e8, allocated: 3e8, rewritten: 0, memory: 2e8,
      rate: 2e7, capped: true },
    { name: 'holes, and nobody says how many', diskSize: 6e8, allocated: null, rewritten: 0,
      memory: 6e8, rate: 2e7 },
    { name: 'written while it is copied', diskSize: 1e9, allocated: 1e9, rewritten: 1e6,
      memory: 2e8, rate: 5e7 },
  ])('after a fifth of the move is within a fifth of it: $name', (scene) => {
    for (const seed of [1, 2, 3, 4, 5]) {
      const errors = errorsOf(scene, seed);
      const worst = Math.max(...errors.map(Math.abs));
      console.info(`${scene.name}, seed ${seed}: worst ${(worst * 100).toFixed(1)} %`);
      expect(errors.length, `seed ${seed}`).toBeGreaterThan(5);
      expect(worst, `seed ${seed}: ${errors.join(' ')}`).toBeLessThan(0.2);
    }
  });

  test('is silent before a rate is known, while paused, and before the link is up', () => {
    const look: EtaLook = {
      phase: 'disk', paused: false,
      memory: { etaMs: null, bytesLeft: bytes(1e6), diskBytes: bytes(0) },
      disks: { bytesTotal: 1e9, bytesDone: 0, bytesAtStart: 1e9, bytesAllocated: 1e9,
        bytesPerSecondMax: 0, mode: 'background', said: '' },
    };
    const first = nextDiskPace(null, { nowMs: 0, carried: 0, done: 0, paused: false });
    const pace = nextDiskPace(first, { nowMs: 1_000, carried: 1e7, done: 1e7, paused: false });
    expect(etaOf(look, null)).toBeNull();
    expect(etaOf(look, first)).toBeNull();
    expect(etaOf(look, pace)).toBeCloseTo(100_100 + closingMs, 0);
    expect(etaOf({ ...look, paused: true }, pace)).toBeNull();
    expect(etaOf({ ...look, phase: 'connecting' }, pace)).toBeNull();
    expect(etaOf({ ...look, phase: 'memory' }, pace)).toBeNull();
  });

  test('a pause does not make the link slower', () => {
    let pace: DiskPace | null = null;
    let carried = 0;
    for (let nowMs = 0; nowMs <= 20_000; nowMs += 500) {
      const paused = nowMs > 5_000 && nowMs <= 15_000;
      pace = nextDiskPace(pace, { nowMs, carried, done: carried, paused });
      if (!paused) carried += 5e6;
    }
    expect((pace?.seenCarried ?? 0) / (pace?.seenMs ?? 1)).toBeCloseTo(1e4, -3);
  });

  test('bytes that are left: holes cost nothing, rewritten ones do', () => {
    const disks = { bytesTotal: 1_000, bytesDone: 100, bytesAtStart: 1_000, bytesAllocated: 300,
      bytesPerSecondMax: 0, mode: 'background' as const, said: '' };
    expect(diskBytesLeft(disks, 100)).toBe(200);
    expect(diskBytesLeft({ ...disks, bytesTotal: 1_050 }, 100)).toBe(250);
    expect(diskBytesLeft({ ...disks, bytesDone: 950 }, 100)).toBe(50);
    expect(diskBytesLeft({ ...disks, bytesAllocated: null }, 100)).toBe(900);
    expect(diskBytesLeft(disks, 5_000)).toBe(0);
  });
});
