// Two jobs over the time since each began, in place of the picture that the page has without scripts.

import { dataOf } from "/static/base.js";
import { Charts } from "/static/charts.js";

const root = document.getElementById("curves");
const told = dataOf("curves-data");

if (root && told) {
  const panels = told.curves.panels.map((panel) => ({
    ...panel,
    title: told.names[panel.name] || panel.name,
    curves: panel.curves.map((curve) => ({ ...curve, label: told.sides[curve.side], dashed: curve.side === "b" })),
  }));
  root.classList.add("charts");
  new Charts(root, panels, { words: told.words, relative: true }).set(told.curves.data);
}
