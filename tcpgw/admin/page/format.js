// How figures are written: short, of one width where they change each second, "–" where nothing is known.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

export function count(value) {
  return value == null ? "–" : value >= 1e7 ? `${tenths.format(value / 1e6)} M` : whole.format(value);
}

export function rate(value) {
  if (value == null) return "–";
  if (value !== 0 && value < 0.05) return "<0.1/s";
  return `${value !== 0 && value < 10 ? tenths.format(value) : count(value)}/s`;
}

export function bytes(value) {
  if (value == null) return "–";
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= size) return `${tenths.format(value / size)} ${unit}`;
  }
  return `${whole.format(value)} B`;
}

export function mebibytes(value) {
  return value == null ? "–" : `${whole.format(value / 1048576)} MiB`;
}

export function percent(share) {
  if (share == null) return "–";
  const value = share * 100;
  return value !== 0 && value < 10 ? `${tenths.format(value)} %` : `${whole.format(value)} %`;
}

/** Of latencies and lags. */
export function time(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.001) return `${whole.format(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${tenths.format(seconds * 1e3)} ms`;
  if (seconds < 1) return `${whole.format(seconds * 1e3)} ms`;
  return `${tenths.format(seconds)} s`;
}

/** Of ages: the two greatest units. */
export function duration(seconds) {
  if (seconds == null) return "–";
  const total = Math.max(0, Math.floor(seconds));
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => total >= size);
  if (first < 0) return "0 s";
  const [unit, size] = units[first];
  const next = units[first + 1];
  const rest = next ? Math.floor((total % size) / next[1]) : 0;
  return `${Math.floor(total / size)} ${unit}${rest ? ` ${rest} ${next[0]}` : ""}`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString([], { hour12: false });
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Whether failures are worth a colour: one in two hundred, and so a few a minute at least. */
export function many(failed, all) {
  return failed > 0.05 && failed > all / 200;
}
