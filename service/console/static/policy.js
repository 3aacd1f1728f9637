// The editor: numbers beside the lines, and what is wrong with the text while it is written. The server judges.

import { dataOf, element, fill, plain, request } from "/static/base.js";

const QUIET_MS = 700; // after the last key: half a sentence is not judged
const TEXTS = dataOf("policy-texts") || {};
const area = document.getElementById("text"), said = document.getElementById("live-check");

if (area) {
  const numbers = element("pre", { "aria-hidden": "true" });
  const frame = element("div", { class: "numbered" });
  area.before(frame);
  frame.append(numbers, area);

  const count = () => {
    const lines = area.value.split("\n").length;
    if (Number(numbers.dataset.lines) === lines) return;
    numbers.dataset.lines = String(lines);
    numbers.textContent = Array.from({ length: lines }, (_, at) => at + 1).join("\n");
  };
  const follow = () => {
    numbers.style.height = `${area.offsetHeight}px`;
    numbers.scrollTop = area.scrollTop;
  };
  let waiting = 0, asked = null;
  area.addEventListener("input", () => {
    count();
    follow();
    clearTimeout(waiting);
    waiting = setTimeout(judge, QUIET_MS);
    const own = document.querySelector('input[name="what"][value="text"]');
    if (own) own.checked = true;
  });
  area.addEventListener("scroll", follow);
  new ResizeObserver(follow).observe(area);
  count();
  follow();
  for (const link of document.querySelectorAll("a[data-line]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      goTo(Number(link.dataset.line));
    });
  }

  async function judge() {
    asked?.abort();
    asked = new AbortController();
    try {
      const answer = await request(area.dataset.check, { form: { text: area.value }, signal: asked.signal, stay: true }); // with what was written
      show(answer.mistakes);
    } catch (error) {
      if (error.name !== "AbortError") said.replaceChildren(error.status === 401 ? TEXTS.ended : plain(error.message));
    }
  }
}

/** Put the cursor on a line, from 1. */
function goTo(line) {
  const lines = area.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, text) => sum + text.length + 1, 0);
  area.focus();
  area.setSelectionRange(start, start + (lines[line - 1] || "").length);
  area.scrollTop = Math.max(0, (area.scrollHeight / lines.length) * (line - 4));
}

function show(mistakes) {
  if (!mistakes.length) {
    said.replaceChildren(TEXTS.good || "");
    return;
  }
  said.replaceChildren(fill(TEXTS.mistakes, { count: mistakes.length }), element("ul", {}, mistakes.map(listed)));
}

function listed(mistake) {
  const line = mistake.line ? element("button", { type: "button" }, fill(TEXTS.line, { line: mistake.line })) : null;
  line?.addEventListener("click", () => goTo(mistake.line));
  const key = mistake.key ? element("code", {}, plain(mistake.key)) : null;
  return element("li", {}, line, line ? ": " : null, key, key ? " " : null, plain(mistake.what, 300));
}
