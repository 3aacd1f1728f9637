// Live pages of roll-outs: told of a change, the page is asked for anew and its parts are put in place.

import { announce, writeTimes } from "/static/base.js";
import { freshPage } from "/static/fresh_page.js";
import { connect } from "/static/live.js";

const LEAST_MS = 1000; // between two looks: a roll-out of thousands changes all the time
const AGAIN_MS = 5000; // without a word, for what another program runs
const PARTS = ["fresh", "fresh-boards", "fresh-actions"];

const fresh = document.getElementById("fresh");
const id = fresh?.dataset.id ?? "";
let last = 0;
let timer = 0;
let busy = false;
let said = document.getElementById("sums")?.dataset.said ?? "";

function place(page) {
  for (const name of PARTS) {
    const before = document.getElementById(name);
    const after = page.getElementById(name);
    if (!before || !after || before.outerHTML === after.outerHTML) continue;
    if (before.contains(document.activeElement)) {
      if (name === "fresh-actions") continue; // nobody loses the button that has the focus
      const here = document.activeElement.getAttribute("href");
      before.replaceWith(document.adoptNode(after));
      if (here) document.getElementById(name).querySelector(`[href="${CSS.escape(here)}"]`)?.focus();
    } else {
      before.replaceWith(document.adoptNode(after));
    }
    writeTimes(document.getElementById(name));
  }
  const words = document.getElementById("sums")?.dataset.said ?? "";
  if (words && words !== said) announce(words);
  said = words;
}

async function look() {
  timer = 0;
  if (busy || document.hidden) return later(LEAST_MS);
  busy = true;
  last = Date.now();
  try {
    const page = await freshPage(location.pathname + location.search);
    if (page) place(page);
  } finally {
    busy = false;
  }
}

function later(ms) {
  if (!timer) timer = setTimeout(look, Math.max(0, ms, last + LEAST_MS - Date.now()));
}

if (fresh) {
  connect({ roll_outs: "1" }, { "roll-out": (told) => (!id || told.id === id) && later(0) });
  setInterval(() => Date.now() - last > AGAIN_MS && !document.hidden && later(0), AGAIN_MS);
}
