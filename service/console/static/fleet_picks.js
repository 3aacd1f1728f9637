// Boards that were picked for a roll-out: kept over pages, filters and reloads of this tab.

import { announce, fill, toast } from "./base.js";
import { FACTS, TEXTS } from "./fleet_rows.js";

const KEY = "fleet-picked";
const chosen = new Set(read());
let latest = null;

function read() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) || "[]");
    return Array.isArray(kept) ? kept.filter((name) => typeof name === "string").slice(0, FACTS.most) : [];
  } catch {
    return []; // a browser that keeps nothing, or something that is no list
  }
}

function keep() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify([...chosen]));
  } catch {
    // they last as long as the page
  }
}

const boxes = (rows) => [...rows.querySelectorAll("input[name=boards]")];

/** Tick what is picked among the rows, and say how many there are. */
export function restore(rows) {
  if (!FACTS.choose) return;
  for (const box of boxes(rows)) {
    box.checked = chosen.has(box.value);
    box.closest("tr").classList.toggle("picked", box.checked);
  }
  const shown = boxes(rows), all = document.getElementById("pick-all"), ticked = shown.filter((box) => box.checked).length;
  all.hidden = !shown.length;
  all.checked = ticked > 0 && ticked === shown.length;
  all.indeterminate = ticked > 0 && ticked < shown.length;
  const count = document.getElementById("picked"), text = fill(TEXTS.fleet.picked, { count: chosen.size });
  count.hidden = !chosen.size;
  if (count.textContent !== text) count.textContent = text;
  document.getElementById("unpick").hidden = !chosen.size;
  document.getElementById("roll-out-picked").hidden = !chosen.size;
}

function pick(names, on) {
  let full = false;
  for (const name of names) {
    if (!on) chosen.delete(name);
    else if (chosen.size < FACTS.most || chosen.has(name)) chosen.add(name);
    else full = true;
  }
  keep();
  if (full) toast(fill(TEXTS.fleet["picked-most"], { most: FACTS.most }));
  else announce(fill(TEXTS.fleet.picked, { count: chosen.size }));
}

/** Listen to the boxes of the rows. */
export function follow(rows) {
  if (!FACTS.choose) return;
  rows.addEventListener("click", (event) => {
    if (!event.target.matches("input[name=boards]")) return;
    const box = event.target, shown = boxes(rows), from = shown.indexOf(latest), to = shown.indexOf(box);
    const span = event.shiftKey && from >= 0 ? shown.slice(Math.min(from, to), Math.max(from, to) + 1) : [box];
    pick(span.map((one) => one.value), box.checked);
    latest = box;
    restore(rows);
  });
  document.getElementById("pick-all").addEventListener("change", (event) => {
    pick(boxes(rows).map((box) => box.value), event.target.checked);
    restore(rows);
  });
  document.getElementById("unpick").addEventListener("click", () => {
    chosen.clear();
    keep();
    restore(rows);
    document.getElementById("pick-all").focus();
  });
  document.getElementById("chosen").addEventListener("submit", (event) => {
    event.preventDefault();
    location.assign(`/roll-outs/new?${new URLSearchParams({ boards: [...chosen].join(",") })}`);
  });
}
