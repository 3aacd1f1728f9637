// The arithmetic of charts: columns in, columns out. No page is touched here.

export const COLUMNS = ["min", "max", "last"];

const none = (value) => value === null || value === undefined;

/** Values to draw: what is missing for at most `gap` seconds is passed over (undefined), for longer it is a gap (null). */
export function bridged(ts, values, scale, gap, stretches = null) {
  const drawn = new Array(values.length);
  let before = -1;
  for (let at = 0; at < values.length; at++) {
    if (none(values[at])) continue;
    drawn[at] = values[at] * scale;
    const apart = before < 0 || ts[at] - ts[before] > gap || (stretches && stretches[at] !== stretches[before]);
    for (let empty = before + 1; empty < at; empty++) drawn[empty] = apart ? null : undefined;
    before = at;
  }
  for (let empty = before + 1; empty < values.length; empty++) drawn[empty] = null;
  return drawn;
}

/** Of each moment the number of the stretch in which a group spoke without a pause of more than `gap` seconds. */
export function stretchesOf(ts, columns, gap) {
  const found = new Array(ts.length);
  let stretch = 0, last = -1;
  for (let at = 0; at < ts.length; at++) {
    if (columns.some((column) => !none(column[at]))) {
      if (last >= 0 && ts[at] - ts[last] > gap) stretch++;
      last = at;
    }
    found[at] = stretch;
  }
  return found;
}

/** Columns with an empty moment wherever nothing at all was told for longer than `gap` seconds. */
export function opened(ts, columns, gap) {
  const times = [], filled = columns.map(() => []);
  for (let at = 0; at < ts.length; at++) {
    if (at > 0 && ts[at] - ts[at - 1] > gap) {
      times.push((ts[at] + ts[at - 1]) / 2);
      for (const column of filled) column.push(null);
    }
    times.push(ts[at]);
    for (let place = 0; place < columns.length; place++) filled[place].push(columns[place][at]);
  }
  return [times, filled];
}

/** Least, greatest and last value of a metric, or null: it has none. */
export function extent(metric) {
  let least = Infinity, most = -Infinity, last = null;
  for (let at = 0; at < metric.last.length; at++) {
    if (none(metric.last[at])) continue;
    least = Math.min(least, metric.min[at]);
    most = Math.max(most, metric.max[at]);
    last = metric.last[at];
  }
  return last === null ? null : [least, most, last];
}

/** The place of the value nearest to `at`, no further than `gap` seconds; null: there is none. */
export function nearest(times, column, at, gap) {
  for (let away = 0; away < times.length; away++) {
    const below = at - away, above = at + away;
    const near = [below, above].filter((place) => place in times && Math.abs(times[place] - times[at]) <= gap);
    if (!near.length) return null;
    for (const place of near) if (!none(column[place])) return place;
  }
  return null;
}

/** The ends of an axis: those of the panel, else those of its values with some room. */
export function reach(panel, least, most) {
  let low = panel.low ?? least ?? 0, high = panel.high ?? most ?? 1;
  const room = Math.max((high - low) * 0.08, Math.abs(high) * 0.005, 2 * 10 ** -panel.digits);
  if (none(panel.low)) low = low >= 0 ? Math.max(0, low - room) : low - room;
  if (none(panel.high)) high += room;
  return [low, high > low ? high : low + 1];
}

/** Whether a column has so few values that points are drawn: a score after each epoch is no line. */
export function sparse(column) {
  let count = 0;
  for (const value of column) if (!none(value) && ++count > 40) return false;
  return true;
}

export function scaled(value, scale) {
  return none(value) ? null : value * scale;
}

/** Seconds since a beginning as 1:02:03. */
export function clock(value) {
  const whole = Math.round(Math.abs(value));
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return (value < 0 ? "-" : "") + shown.map((part, at) => (at ? String(part).padStart(2, "0") : part)).join(":");
}

/** Add what was told at a moment to columns; false: it came late, and is there the next time all is asked for. */
export function append(data, ts, group, values) {
  const end = data.ts.length - 1;
  if (end >= 0 && ts < data.ts[end]) return false;
  if (end < 0 || ts > data.ts[end]) {
    data.ts.push(ts);
    for (const metric of Object.values(data.metrics)) for (const name of COLUMNS) metric[name].push(null);
  }
  for (const [key, value] of Object.entries(values)) {
    const metric = Object.hasOwn(data.metrics, `${group}.${key}`) ? data.metrics[`${group}.${key}`] : null;
    if (!metric || typeof value !== "number" || !Number.isFinite(value)) continue;
    for (const name of COLUMNS) metric[name][data.ts.length - 1] = value;
  }
  return true;
}

/** Forget what is older than a moment. */
export function forget(data, before) {
  let gone = 0;
  while (gone < data.ts.length && data.ts[gone] < before) gone++;
  if (!gone) return;
  data.ts.splice(0, gone);
  for (const metric of Object.values(data.metrics)) for (const name of COLUMNS) metric[name].splice(0, gone);
}
