// The cards and small charts above the list, as service/console/fleet_charts.py computes them.

import { figure, fill } from "./base.js";
import { FACTS, TEXTS } from "./fleet_rows.js";

const GAP = 2, LEAST = 1.5, FIRST_CELSIUS = 30, STEP_CELSIUS = 5;

/** Write new counts into the cards and charts. */
export function drawSummary(summary) {
  const counts = { all: summary.total, alarmed: summary.alarmed, ...summary.states };
  for (const tile of document.querySelectorAll("[data-tile]")) {
    const text = figure(counts[tile.dataset.tile] || 0, 0), place = tile.querySelector(".count");
    if (place.textContent !== text) place.textContent = text;
  }
  drawShares(summary.states);
  drawHistogram(summary.temperatures);
}

function drawShares(states) {
  const picture = document.querySelector("svg.shares"), parts = [...picture.querySelectorAll("rect")];
  const total = Object.values(states).reduce((sum, count) => sum + count, 0);
  let x = 0;
  for (const part of parts) {
    const width = total ? (FACTS.shares * (states[part.dataset.state] || 0)) / total : 0;
    part.setAttribute("x", x.toFixed(2));
    part.setAttribute("width", width.toFixed(2));
    x += width;
  }
  const words = parts.map((part) => `${TEXTS.fleet[`tile.${part.dataset.state}`]} ${states[part.dataset.state] || 0}`);
  picture.setAttribute("aria-label", `${TEXTS.fleet.shares}: ${words.join(", ")}`);
}

function drawHistogram(counts) {
  const picture = document.querySelector("svg.heat"), bars = [...picture.querySelectorAll("rect")];
  const step = FACTS.width / Math.max(1, counts.length), most = Math.max(1, ...counts), words = [];
  bars.forEach((bar, band) => {
    const count = counts[band] || 0, height = count ? Math.max(LEAST, (FACTS.height * count) / most) : 0;
    bar.setAttribute("x", (band * step).toFixed(2));
    bar.setAttribute("y", (FACTS.height - height).toFixed(2));
    bar.setAttribute("width", (step - GAP).toFixed(2));
    bar.setAttribute("height", height.toFixed(2));
    const low = FIRST_CELSIUS + (band - 1) * STEP_CELSIUS;
    if (count) words.push(`${band ? fill(TEXTS.fleet.band, { low }) : TEXTS.fleet["band-first"]} ${count}`);
  });
  picture.setAttribute("aria-label", `${TEXTS.fleet.temperatures}: ${words.join(", ") || TEXTS.unknown}`);
}
