/**
 * Checked constructors for quantities. A number that went through one is a whole, safe, sane one.
 */
declare const unit: unique symbol;
type Quantity<U extends string> = number & { readonly [unit]?: U };

/** A count of bytes, 0 to 2^53-1. */
export type Bytes = Quantity<'Bytes'>;
/** A count of 4 KiB guest pages. */
export type Pages = Quantity<'Pages'>;
/** Milliseconds; fractions allowed where they were measured. */
export type Millis = Quantity<'Millis'>;
/** Bytes in a second; 0 means "no limit" only where a field's comment says so. */
export type BytesPerSecond = Quantity<'BytesPerSecond'>;

export const pageSizeBytes = 4096;
export const kib = 1024;
export const mib = 1024 * 1024;
export const gib = 1024 * 1024 * 1024;

function whole(value: number, what: string): number {
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new RangeError(`${what} must be a whole number from 0 to 2^53-1, got ${value}`);
}

export const bytes = (value: number): Bytes => whole(value, 'bytes');
export const pages = (value: number): Pages => whole(value, 'pages');
export const bytesPerSecond = (value: number): BytesPerSecond => whole(value, 'bytes per second');
export function millis(value: number): Millis {
  if (Number.isFinite(value) && value >= 0) return value;
  throw new RangeError(`milliseconds must be a finite number of at least 0, got ${value}`);
}

const sizeFactors: Readonly<Record<string, number>> = {
  '': 1, k: kib, m: mib, g: gib, t: 1024 * gib,
  kb: 1e3, mb: 1e6, gb: 1e9, tb: 1e12, kib, mib, gib, tib: 1024 * gib,
};

/**
 * Reads "512M", "1GiB", "200MB", "1.5g": K/M/G/T and KiB.. are powers of 1024, KB.. of 1000.
 * Throws RangeError with what was expected.
 */
export function parseBytes(text: string): Bytes {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([a-z]{0,3})\s*$/i.exec(text);
  const factor = sizeFactors[(match?.[2] ?? '?').toLowerCase()];
  if (match?.[1] === undefined || factor === undefined) {
    throw new RangeError(`"${text.slice(0, 40)}" is not a size: write it like 512M, 1GiB or 200MB`);
  }
  return bytes(Math.round(Number(match[1]) * factor));
}

/** "1.5 GiB": three significant digits, binary units. For people only. */
export function formatBytes(value: Bytes): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let index = 0;
  let rest: number = value;
  while (rest >= 1024 && index < units.length - 1) {
    rest /= 1024;
    index += 1;
  }
  return `${index === 0 ? rest : Number(rest.toPrecision(3))} ${units[index]}`;
}
