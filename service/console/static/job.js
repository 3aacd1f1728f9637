// The page of one job: the charts of its time with its stages behind them, live while it is at work.

import { dataOf, element, fill, request, writeTimes } from "/static/base.js";
import { Charts } from "/static/charts.js";
import { lookOf } from "/static/device_charts.js";
import { Fresh } from "/static/device_fresh.js";
import { connect } from "/static/live.js";

const BUCKETS = 900;
const LATE_S = 30; // the board's clock and ours may differ by seconds
const settings = dataOf("device-settings");
const place = document.getElementById("charts-place"), trouble = document.getElementById("chart-trouble");
const fresh = new Fresh(`/device/${settings.board}/jobs/${settings.job}?live`, stages);
const charts = new Charts(place, settings.panels, { words: settings.words, onSpan: (since, until) => load(since, until) });
let shown = null; // a span that was chosen by dragging

async function load(since, until) {
  shown = since ? [since, until] : null;
  const [from, to] = shown ?? [settings.since, settings.open ? Date.now() / 1000 + LATE_S : settings.until];
  const given = new URLSearchParams({ since: from.toFixed(3), until: Math.max(to, from + 1).toFixed(3), buckets: BUCKETS });
  performance.mark("chart-asked");
  try {
    const data = await request(`/api/device/${settings.board}/chart?${given}`);
    data.marks = data.marks.map((mark, at) => ({ ...mark, number: at + 1, look: lookOf(mark) }));
    await charts.set({ ...data, bands: told() });
    performance.measure("chart", "chart-asked");
    trouble.hidden = true;
  } catch (error) {
    trouble.textContent = fill(settings.words.failed, { what: error.message });
    trouble.hidden = false;
  }
  place.setAttribute("aria-busy", "false");
}

/** The stages as the head of the page tells them; it is written anew with each status. */
function told() {
  return JSON.parse(document.querySelector("[data-stages]")?.dataset.stages ?? "[]");
}

function stages() {
  const bands = told();
  document.getElementById("stages").replaceChildren(...bands.map((stage) => element("li", {}, stage.name)));
  charts.shade(bands);
}

place.addEventListener("dblclick", () => load());
connect({ board: settings.board }, {
  crowded: () => {
    fresh.ask();
    if (settings.open && !shown) load();
  },
  status: ({ id }) => {
    if (id === settings.job) fresh.ask();
  },
  metrics: ({ group, values, ts }) => {
    if (settings.open && !shown && !document.querySelector("[data-ended=yes]") && values) {
      charts.append(ts, group, values, settings.since, Date.now() / 1000 + LATE_S);
    }
  },
});
stages();
load();
writeTimes();
