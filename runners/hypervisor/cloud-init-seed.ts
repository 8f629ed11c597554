/**
 * The NoCloud seed of a VM: an ISO 9660 image labelled CIDATA with `meta-data` and `user-data`.
 * Pure and deterministic, so that the target of a move makes the same bytes from the same spec.
 * Written here because no ISO tool belongs to a base system. Names follow ECMA-119 with the
 * Joliet tree beside it, which Linux prefers and which keeps the lower case.
 */

const sectorBytes = 2048;
const volumeLabel = 'CIDATA';
/** Sectors: 16 primary, 17 Joliet, 18 end; then path tables, the two directories, the files. */
const layout = {
  pathTableL: 19,
  pathTableM: 20,
  jolietPathL: 21,
  jolietPathM: 22,
  root: 23,
  joliet: 24,
};
const firstFileSector = 25;

interface SeedFile {
  readonly name: string;
  readonly content: Buffer;
  readonly sector: number;
}

const sectorsOf = (length: number): number => Math.max(1, Math.ceil(length / sectorBytes));

function bothEndian16(value: number): Buffer {
  const field = Buffer.alloc(4);
  field.writeUInt16LE(value, 0);
  field.writeUInt16BE(value, 2);
  return field;
}
function bothEndian32(value: number): Buffer {
  const field = Buffer.alloc(8);
  field.writeUInt32LE(value, 0);
  field.writeUInt32BE(value, 4);
  return field;
}
const utf16 = (text: string): Buffer => Buffer.from(text, 'utf16le').swap16();
function padded(text: Buffer, length: number, fill: Buffer): Buffer {
  return Buffer.concat([text, Buffer.alloc(length - text.length, fill)]);
}

/** A directory record (ECMA-119 9.1); dates are fixed to keep the image deterministic. */
function record(options: {
  readonly name: Buffer;
  readonly sector: number;
  readonly length: number;
  readonly directory: boolean;
}): Buffer {
  const size = 33 + options.name.length + (options.name.length % 2 === 0 ? 1 : 0);
  const out = Buffer.alloc(size);
  out[0] = size;
  bothEndian32(options.sector).copy(out, 2);
  bothEndian32(options.length).copy(out, 10);
  Buffer.from([126, 1, 1, 0, 0, 0, 0]).copy(out, 18);
  out[25] = options.directory ? 2 : 0;
  bothEndian16(1).copy(out, 28);
  out[32] = options.name.length;
  options.name.copy(out, 33);
  return out;
}

function directory(
  sector: number,
  files: readonly SeedFile[],
  nameOf: (name: string) => Buffer,
): Buffer {
  const self = { sector, length: sectorBytes, directory: true };
  const records = [
    record({ name: Buffer.from([0]), ...self }),
    record({ name: Buffer.from([1]), ...self }),
    ...files.map((file) =>
      record({
        name: nameOf(file.name),
        sector: file.sector,
        length: file.content.length,
        directory: false,
      }),
    ),
  ];
  return padded(Buffer.concat(records), sectorBytes, Buffer.from([0]));
}

function pathTable(root: number, bigEndian: boolean): Buffer {
  const table = Buffer.alloc(sectorBytes);
  table[0] = 1;
  if (bigEndian) {
    table.writeUInt32BE(root, 2);
    table.writeUInt16BE(1, 6);
  } else {
    table.writeUInt32LE(root, 2);
    table.writeUInt16LE(1, 6);
  }
  return table;
}

/** A volume descriptor (ECMA-119 8.4, Joliet's with escape sequence `%/E`). */
function descriptor(options: { readonly joliet: boolean; readonly sectorCount: number }): Buffer {
  const { joliet } = options;
  const out = Buffer.alloc(sectorBytes);
  const text = (value: string): Buffer => (joliet ? utf16(value) : Buffer.from(value, 'latin1'));
  const blank = text(' ');
  const root = joliet ? layout.joliet : layout.root;
  out[0] = joliet ? 2 : 1;
  out.write('CD001', 1, 'latin1');
  out[6] = 1;
  padded(text('LINUX'), 32, blank).copy(out, 8);
  padded(text(volumeLabel), 32, blank).copy(out, 40);
  bothEndian32(options.sectorCount).copy(out, 80);
  if (joliet) out.write('%/E', 88, 'latin1');
  bothEndian16(1).copy(out, 120);
  bothEndian16(1).copy(out, 124);
  bothEndian16(sectorBytes).copy(out, 128);
  bothEndian32(10).copy(out, 132);
  out.writeUInt32LE(joliet ? layout.jolietPathL : layout.pathTableL, 140);
  out.writeUInt32BE(joliet ? layout.jolietPathM : layout.pathTableM, 148);
  record({ name: Buffer.from([0]), sector: root, length: sectorBytes, directory: true }).copy(
    out,
    156,
  );
  for (const [start, length] of [
    [190, 128],
    [318, 128],
    [446, 128],
    [574, 128],
  ] as const) {
    padded(Buffer.alloc(0), length, blank).copy(out, start);
  }
  out.fill(' ', 702, 813, 'latin1');
  for (const start of [813, 830, 847, 864]) out.write('0000000000000000', start, 'latin1');
  out[881] = 1;
  return out;
}

/** The bytes of a NoCloud seed; `instanceId` is what cloud-init runs its first boot for. */
export function buildSeed(options: {
  readonly instanceId: string;
  readonly hostName: string;
  readonly userData: string;
}): Buffer {
  const meta = `instance-id: ${options.instanceId}\nlocal-hostname: ${options.hostName}\n`;
  let sector = firstFileSector;
  const files: SeedFile[] = [];
  for (const [name, text] of [
    ['meta-data', meta],
    ['user-data', options.userData],
  ] as const) {
    const content = Buffer.from(text, 'utf8');
    files.push({ name, content, sector });
    sector += sectorsOf(content.length);
  }
  const end = Buffer.alloc(sectorBytes);
  end[0] = 255;
  end.write('CD001', 1, 'latin1');
  end[6] = 1;
  return Buffer.concat([
    Buffer.alloc(16 * sectorBytes),
    descriptor({ joliet: false, sectorCount: sector }),
    descriptor({ joliet: true, sectorCount: sector }),
    end,
    pathTable(layout.root, false),
    pathTable(layout.root, true),
    pathTable(layout.joliet, false),
    pathTable(layout.joliet, true),
    directory(layout.root, files, (name) => Buffer.from(`${name.toUpperCase()}.;1`, 'latin1')),
    directory(layout.joliet, files, utf16),
    ...files.map((file) =>
      padded(file.content, sectorsOf(file.content.length) * sectorBytes, Buffer.from([0])),
    ),
  ]);
}
