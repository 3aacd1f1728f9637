// Charts over one time axis: aligned, with one cursor, bands from least to greatest, marks, and the same as text.
// Needs uPlot as a global (static/vendor). Whatever boards sent reaches the page as text only.

import { announce, element, figure, fill, moment } from "/static/base.js";
import { append, bridged, clock, COLUMNS, extent, forget, nearest, opened, reach, scaled, sparse, stretchesOf } from "/static/charts_numbers.js";

const AXIS_WIDTH = 58; // pixels: every plot begins at the same x
const PLOT_HEIGHT = 124;
const TABLE_ROWS = 1000; // of a table; more rows nobody reads
const LABEL_ROOM = 20; // pixels between two numbers of marks
const DAY = 86400;
const EMPTY = { since: 0, until: 1, ts: [], metrics: {}, marks: [], bands: [], gap_s: 150, bucket_s: 0 };

let groups = 0;

/**
 * Panels below one another.
 * panels: [{name, title, unit, digits, low, high, curves: [{metric, label, unit, scale, steps, dashed, holds}]}]
 * options: words {summary, table, time, min, max, last, nothing}, relative (x is seconds since a beginning, not a time),
 *   onSpan(since, until): a span was chosen by dragging.
 * numbers, for `set`: {since, until, ts, metrics: {metric: {min, max, last}}, gap_s, bucket_s,
 *   gaps: {group: seconds} of groups that speak only while there is work, marks: [{ts, number, look: run, slow, hold or alarm}], bands: [{from, to}]}.
 */
export class Charts {
  constructor(root, panels, options) {
    this.root = root;
    this.options = options;
    this.key = `charts-${++groups}`;
    this.data = { ...EMPTY, ts: [], metrics: {} };
    this.forms = new Map();
    this.chosen = null;
    this.pending = false;
    this.panels = panels.map((panel, index) => this.#panel(panel, index));
    this.nothing = element("p", { class: "charts-nothing", hidden: true });
    root.replaceChildren(...this.panels.map((panel) => panel.node), this.nothing);
    this.watch = new ResizeObserver(() => this.#resize());
    this.watch.observe(root);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.repaint = () => this.#rebuild();
    this.dark.addEventListener("change", this.repaint);
    document.addEventListener("theme", this.repaint);
  }

  /** Show other numbers; resolves once they are drawn. */
  set(data) {
    this.data = { ...EMPTY, ...data };
    return this.#draw();
  }

  /** Add what a board just told; the span shown moves with it. */
  append(ts, group, values, since, until) {
    if (ts >= since && ts <= until && append(this.data, ts, group, values)) this.slide(since, until);
  }

  /** Move the span shown. */
  slide(since, until) {
    forget(this.data, since - this.data.gap_s);
    this.data.since = since;
    this.data.until = until;
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.#draw();
    });
  }

  /** Point at a moment, in all charts. */
  choose(ts) {
    this.chosen = ts;
    for (const panel of this.panels) panel.plot?.redraw(false);
  }

  /** Other spans behind the curves. */
  shade(bands) {
    this.data = { ...this.data, bands };
    for (const panel of this.panels) panel.plot?.redraw(false);
  }

  destroy() {
    this.watch.disconnect();
    document.removeEventListener("theme", this.repaint);
    this.dark.removeEventListener("change", this.repaint);
    for (const panel of this.panels) panel.plot?.destroy();
    this.root.replaceChildren();
  }

  #panel(panel, index) {
    const keys = panel.curves.map((curve, place) => {
      const swatch = element("span", { class: `chart-swatch chart-swatch-${place + 1}${curve.dashed ? " is-dashed" : ""}` });
      const value = element("span", { class: "chart-value" });
      return { node: element("span", { class: "chart-key" }, swatch, label(panel, curve), " ", value), value };
    });
    const title = element("span", { class: "chart-title", id: `${this.key}-${index}` }, panel.title);
    const unit = element("span", { class: "chart-unit" }, panel.unit);
    const caption = element("figcaption", {}, title, " ", unit, ...keys.map((key) => key.node));
    const box = element("div", { class: "chart-plot", tabindex: "0", role: "img", "aria-label": panel.title });
    const text = element("p", { class: "chart-summary" });
    const inside = element("div", { class: "chart-table", tabindex: "0", role: "region", "aria-labelledby": `${this.key}-${index}` });
    const table = element("details", { class: "chart-numbers" }, element("summary", {}, this.options.words.table), inside);
    const foot = element("div", { class: "chart-foot" }, text, table);
    const node = element("figure", { class: "chart", "data-panel": panel.name }, caption, box, foot);
    const made = { ...panel, node, box, text, table, inside, keys, title, plot: null, columns: [] };
    table.addEventListener("toggle", () => this.#table(made));
    box.addEventListener("keydown", (event) => this.#step(made, event));
    return made;
  }

  #draw() {
    const { data } = this;
    this.parted = new Map();
    const empty = [];
    for (const panel of this.panels) {
      const metrics = panel.curves.map((curve) => data.metrics[curve.metric] ?? { min: [], max: [], last: [] });
      const told = metrics.map(extent);
      const hidden = told.every((three) => three === null);
      panel.node.hidden = hidden;
      if (hidden) {
        empty.push(panel.title.textContent);
        panel.plot?.destroy();
        panel.plot = null;
        continue;
      }
      const raw = metrics.flatMap((metric) => COLUMNS.map((name) => metric[name]));
      const [times, filled] = opened(data.ts, raw, least(data));
      const blank = new Array(times.length).fill(null); // messages as they are have no band
      const drawn = filled.map((column, at) => {
        if (data.bucket_s === 0 && at % 3 < 2) return blank;
        const curve = panel.curves[Math.floor(at / 3)];
        return bridged(times, column, curve.scale, Math.max(data.gap_s, curve.holds ?? 0), this.#stretches(curve, times));
      });
      panel.columns = [times, ...drawn];
      this.#describe(panel, told);
      if (panel.plot) {
        panel.plot.batch(() => {
          panel.plot.setData(panel.columns, false);
          panel.plot.setScale("x", { min: data.since, max: data.until });
        });
      } else panel.plot = this.#plot(panel);
      if (panel.table.open) this.#table(panel);
    }
    this.nothing.hidden = empty.length === 0;
    this.nothing.textContent = empty.length ? fill(this.options.words.nothing, { names: empty.join(", ") }) : "";
    return new Promise((resolve) => requestAnimationFrame(() => resolve()));
  }

  /** Where the group of a curve speaks only of work: the stretches in which it did. */
  #stretches(curve, times) {
    const { data } = this, group = curve.metric.split(".")[0], gap = data.gaps?.[group];
    if (!gap) return null;
    if (this.parted.has(group)) return this.parted.get(group);
    const columns = Object.entries(data.metrics).filter(([name]) => name.startsWith(`${group}.`)).map(([, metric]) => metric.last);
    const found = stretchesOf(times, opened(data.ts, columns, least(data))[1], gap);
    this.parted.set(group, found);
    return found;
  }

  #rebuild() {
    for (const panel of this.panels) {
      panel.plot?.destroy();
      panel.plot = null;
    }
    this.#draw();
  }

  #resize() {
    for (const panel of this.panels) {
      const width = panel.box.clientWidth;
      if (panel.plot && width > 0 && width !== panel.plot.width) panel.plot.setSize({ width, height: PLOT_HEIGHT });
    }
  }

  #plot(panel) {
    const style = getComputedStyle(this.root);
    const colour = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
    const ink = colour("--ink-3", "#555");
    const axis = { stroke: ink, font: "11px system-ui, sans-serif", grid: { stroke: colour("--line", "#ddd"), width: 1 } };
    const ticks = { stroke: colour("--line", "#ddd"), width: 1, size: 4 };
    const series = [{}];
    const bands = [];
    panel.curves.forEach((curve, place) => {
      const stroke = colour(`--series-${place + 1}`, "#1d5594");
      const paths = curve.steps ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.linear();
      const edge = { paths, stroke: "transparent", width: 0, points: { show: false } };
      bands.push({ series: [place * 3 + 2, place * 3 + 1], fill: faded(colour(`--series-${place + 1}`, "#1d5594")) });
      series.push(edge, { ...edge });
      const points = { show: (plot, at) => sparse(plot.data[at]), size: 4 };
      series.push({ paths, stroke, width: 1.5, dash: curve.dashed ? [5, 4] : undefined, points });
    });
    const words = (values) => values.map((value) => this.#number(value, value % 1 ? Math.max(1, panel.digits) : 0));
    const plot = new uPlot(
      {
        width: panel.box.clientWidth || 600,
        height: PLOT_HEIGHT,
        legend: { show: false },
        padding: [10, 8, 0, 0],
        cursor: {
          sync: { key: this.key, scales: ["x", null] },
          drag: { x: true, y: false, setScale: false },
          points: { size: 7 },
        },
        scales: {
          x: { time: !this.options.relative, range: () => [this.data.since, this.data.until] },
          y: { range: (_, least, most) => reach(panel, least, most) },
        },
        axes: [
          { ...axis, ticks, size: 26, values: (_, splits, __, ___, step) => this.#ticks(splits, step), space: 70 },
          { ...axis, ticks, size: AXIS_WIDTH, space: 26, values: (_, splits) => words(splits) },
        ],
        series,
        bands,
        hooks: {
          drawClear: [(made) => this.#bands(made, colour)],
          draw: [(made) => this.#marks(made, panel, colour)],
          setCursor: [(made) => this.#pointed(made, panel)],
          setSelect: [(made) => this.#selected(made)],
        },
      },
      panel.columns,
      panel.box,
    );
    return plot;
  }

  #selected(plot) {
    if (plot.select.width < 4) return;
    const since = plot.posToVal(plot.select.left, "x");
    const until = plot.posToVal(plot.select.left + plot.select.width, "x");
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.options.onSpan?.(since, until);
  }

  #pointed(plot, panel) {
    const at = plot.cursor.idx;
    panel.keys.forEach((key, place) => {
      const column = plot.data[place * 3 + 3];
      const near = at === null || at === undefined ? null : nearest(plot.data[0], column, at, Math.max(this.data.gap_s, panel.curves[place].holds ?? 0));
      key.value.textContent = near === null ? "" : this.#number(column[near], panel.digits);
    });
  }

  #step(panel, event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !panel.plot || !panel.plot.data[0].length) return;
    event.preventDefault();
    const times = panel.plot.data[0];
    const from = panel.plot.cursor.idx ?? times.length - 1;
    const at = Math.min(Math.max(from + moves[event.key], 0), times.length - 1);
    panel.plot.setCursor({ left: panel.plot.valToPos(times[at], "x"), top: PLOT_HEIGHT / 2 });
    const told = panel.curves.map((curve, place) => {
      const near = nearest(times, panel.plot.data[place * 3 + 3], at, Math.max(this.data.gap_s, curve.holds ?? 0));
      return near === null ? "" : `${curve.label} ${this.#number(panel.plot.data[place * 3 + 3][near], panel.digits)} ${unitOf(panel, curve)}`;
    });
    announce([this.moment(times[at]), ...told.filter(Boolean)].join(", "));
  }

  #describe(panel, told) {
    const parts = panel.curves.flatMap((curve, place) => {
      if (told[place] === null) return [];
      const [min, max, last] = told[place].map((value) => this.#number(value * curve.scale, panel.digits));
      return [fill(this.options.words.summary, { name: curve.label, min, max, last, unit: unitOf(panel, curve) }).replace(/\s+([.,])/g, "$1")];
    });
    panel.text.textContent = parts.join(" ");
    panel.box.setAttribute("aria-label", `${panel.title.textContent}. ${parts.join(" ")}`);
    panel.keys.forEach((key, place) => (key.node.hidden = told[place] === null));
  }

  #table(panel) {
    if (!panel.table.open) return panel.inside.replaceChildren();
    const { data } = this;
    const heads = panel.curves.flatMap((curve) => COLUMNS.map((name) => `${label(panel, curve)} ${this.options.words[name]}`));
    const head = element("tr", {}, ...[this.options.words.time, ...heads].map((text) => element("th", { scope: "col" }, text)));
    const rows = [];
    for (let at = data.ts.length - 1; at >= 0 && rows.length < TABLE_ROWS; at--) {
      const cells = panel.curves.flatMap((curve) => COLUMNS.map((name) => scaled(data.metrics[curve.metric]?.[name][at], curve.scale)));
      if (cells.every((cell) => cell === null)) continue;
      const shown = cells.map((cell) => element("td", {}, cell === null ? "" : this.#number(cell, panel.digits)));
      rows.push(element("tr", {}, element("th", { scope: "row" }, this.moment(data.ts[at])), ...shown));
    }
    const caption = element("caption", {}, `${panel.title.textContent} ${panel.unit}`);
    panel.inside.replaceChildren(element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows)));
  }

  #bands(plot, colour) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
    (this.data.bands ?? []).forEach((band, index) => {
      const left = Math.max(plot.valToPos(band.from, "x", true), bbox.left);
      const right = Math.min(plot.valToPos(band.to, "x", true), bbox.left + bbox.width);
      if (right <= left) return;
      ctx.fillStyle = colour(index % 2 ? "--chart-stage-2" : "--chart-stage-1", "#0001");
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
    });
    ctx.restore();
  }

  #marks(plot, panel, colour) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const first = this.panels.find((one) => !one.node.hidden) === panel;
    let free = -Infinity;
    ctx.save();
    ctx.font = `${10 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    for (const mark of this.data.marks ?? []) {
      if (mark.ts < this.data.since || mark.ts > this.data.until) continue;
      const x = Math.round(plot.valToPos(mark.ts, "x", true)) + 0.5;
      const chosen = mark.ts === this.chosen;
      ctx.strokeStyle = ctx.fillStyle = colour(`--chart-mark-${mark.look}`, "#777");
      ctx.lineWidth = (chosen ? 3 : 1) * ratio;
      ctx.setLineDash(mark.look === "alarm" || chosen ? [] : [3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (first && (chosen || x - free > LABEL_ROOM * ratio)) {
        ctx.fillText(`${mark.look === "alarm" ? "▲" : ""}${mark.number}`, x, bbox.top - 1 * ratio);
        free = x;
      }
    }
    ctx.restore();
  }

  #ticks(splits, step) {
    if (this.options.relative) return splits.map((value) => clock(value));
    let before = "";
    return splits.map((value) => {
      const at = new Date(value * 1000);
      const day = this.#format(at, { day: "numeric", month: "short" });
      if (step >= DAY) return day;
      const clock = this.#format(at, step >= 60 ? { hour: "2-digit", minute: "2-digit" } : { hour: "2-digit", minute: "2-digit", second: "2-digit" });
      const shown = before !== "" && before !== day ? day : clock;
      before = day;
      return shown;
    });
  }

  /** A moment of the axis in words. */
  moment(ts) {
    if (this.options.relative) return clock(ts);
    return moment(ts, "second");
  }

  #format(at, form) {
    const key = JSON.stringify(form);
    if (!this.forms.has(key)) this.forms.set(key, new Intl.DateTimeFormat(document.documentElement.lang, { hourCycle: "h23", ...form }));
    return this.forms.get(key).format(at);
  }

  #number(value, digits) {
    return figure(value, digits) ?? "";
  }
}

/** The shortest silence that is a gap for any curve. */
function least(data) {
  return Math.min(data.gap_s, ...Object.values(data.gaps ?? {}));
}

function unitOf(panel, curve) {
  return curve.unit ?? panel.unit;
}

/** The name of a curve, with its unit where that is another one than its panel's. */
function label(panel, curve) {
  return unitOf(panel, curve) === panel.unit ? curve.label : `${curve.label} (${curve.unit})`;
}

/** The colour of a band: that of its line, and through it the grid is seen. */
function faded(colour) {
  return /^#[0-9a-f]{6}$/i.test(colour) ? `${colour}2e` : colour;
}
