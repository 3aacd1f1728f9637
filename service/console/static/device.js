// The page of one board: its charts, and what changes on it while somebody looks.

import { dataOf, figure, unknown, element, writeTimes } from "/static/base.js";
import { DeviceCharts } from "/static/device_charts.js";
import { connect } from "/static/live.js";
import { Fresh } from "/static/device_fresh.js";

const settings = dataOf("device-settings");
const charts = new DeviceCharts(settings);
const fresh = new Fresh(`/device/${settings.board}?live`);

/** Figures above the charts: written at once, the rest of the page is asked for when words change. */
function show(group, values) {
  for (const node of document.querySelectorAll("[data-metric]")) {
    const [of, key] = node.dataset.metric.split(".");
    if (of !== group || !(key in values)) continue;
    const value = values[key];
    const text = typeof value === "number" ? figure(value * Number(node.dataset.scale), Number(node.dataset.digits)) : null;
    if (text === null) node.replaceChildren(unknown());
    else node.replaceChildren(element("span", { class: "number" }, text, " ", element("span", { class: "unit" }, node.dataset.unit)));
  }
  if (group !== "board") return;
  for (const node of document.querySelectorAll("[data-word]")) {
    const value = values[node.dataset.word];
    if (typeof value === "string" && value !== node.dataset.value) fresh.ask();
  }
}

connect({ board: settings.board }, {
  hello: () => fresh.ask(),
  crowded: () => {
    fresh.ask();
    charts.renew();
  },
  metrics: ({ board, group, values, ts }) => {
    if (board !== settings.board || !values) return;
    show(group, values);
    charts.append(group, values, ts);
  },
  status: () => fresh.ask(),
  alarm: ({ type, body }) => {
    charts.alarm(type, body);
    fresh.ask();
  },
  conn: () => fresh.ask(),
  birth: () => fresh.ask(),
});
charts.load();
writeTimes();
