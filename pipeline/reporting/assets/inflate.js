// What zlib compressed (RFC 1950 and 1951), into a known number of bytes, at once. The browser's DecompressionStream
// answers later, and printing does not wait for it.
"use strict";
const inflate = (() => {
  // Codes of a kind are numbered in order of their lengths, so that counts and an order are all there is to know.
  const codes = (lengths) => {
    const counts = new Uint16Array(16);
    const starts = new Uint16Array(16);
    lengths.forEach((length) => { if (length) counts[length] += 1; });
    for (let i = 1; i < 15; i += 1) starts[i + 1] = starts[i] + counts[i];
    const symbols = new Uint16Array(lengths.length);
    lengths.forEach((length, symbol) => { if (length) { symbols[starts[length]] = symbol; starts[length] += 1; } });
    return { counts, symbols };
  };
  const steps = (first, extra) => extra.map((bits) => { const from = first; first += 2 ** bits; return from; });
  const repeat = (...runs) => runs.flatMap(([value, times]) => Array(times).fill(value));
  const lengthBits = [...repeat([0, 8], [1, 4], [2, 4], [3, 4], [4, 4], [5, 4]), 0];
  const lengthFrom = [...steps(3, lengthBits.slice(0, -1)), 258];
  const distanceBits = [0, 0, ...repeat(...[...Array(14).keys()].map((bits) => [bits, 2]))];
  const distanceFrom = steps(1, distanceBits);
  const orderOfLengths = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
  const fixed = [codes(repeat([8, 144], [9, 112], [7, 24], [8, 8])), codes(repeat([5, 30]))];
  return (bytes, size) => {
    const found = new Uint8Array(size);
    let filled = 0;
    let at = 2 * 8; // in bits; the first two bytes are zlib's
    const damaged = () => new Error("damaged pixels");
    const bit = () => {
      if (at >= 8 * bytes.length) throw damaged();
      const value = (bytes[at >> 3] >> (at & 7)) & 1;
      at += 1;
      return value;
    };
    const number = (bits) => { let value = 0; for (let i = 0; i < bits; i += 1) value |= bit() << i; return value; };
    const symbol = ({ counts, symbols }) => {
      for (let length = 1, code = 0, first = 0, index = 0; length < 16; length += 1) {
        code |= bit();
        if (code - first < counts[length]) return symbols[index + code - first];
        index += counts[length];
        first = (first + counts[length]) << 1;
        code <<= 1;
      }
      throw damaged();
    };
    const ownCodes = () => {
      const [literals, distances, ordered] = [number(5) + 257, number(5) + 1, number(4) + 4];
      const short = Array(19).fill(0);
      orderOfLengths.slice(0, ordered).forEach((place) => { short[place] = number(3); });
      const code = codes(short);
      const lengths = [];
      while (lengths.length < literals + distances) {
        const next = symbol(code);
        if (next < 16) lengths.push(next);
        else if (next === 16) lengths.push(...repeat([lengths.at(-1), 3 + number(2)]));
        else lengths.push(...repeat([0, next === 17 ? 3 + number(3) : 11 + number(7)]));
      }
      return [codes(lengths.slice(0, literals)), codes(lengths.slice(literals))];
    };
    for (let isLast = 0; !isLast;) {
      isLast = bit();
      const kind = number(2);
      if (kind === 0) {
        at = (at + 7) & ~7;
        const length = number(16);
        at += 16;
        found.set(bytes.subarray(at >> 3, (at >> 3) + length), filled);
        filled += length;
        at += 8 * length;
        continue;
      }
      const [literals, distances] = kind === 1 ? fixed : ownCodes();
      for (let next = symbol(literals); next !== 256; next = symbol(literals)) {
        if (next < 256) { found[filled] = next; filled += 1; continue; }
        const end = filled + lengthFrom[next - 257] + number(lengthBits[next - 257]);
        const place = symbol(distances);
        const back = distanceFrom[place] + number(distanceBits[place]);
        for (; filled < end; filled += 1) found[filled] = found[filled - back];
      }
    }
    return found;
  };
})();
